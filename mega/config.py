"""What the scripts share on their way from a config to a run.

Options of the scripts, checked: a wrong one is an InputError that says what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from mega.data.photos import InputError
from mega_common import device


def build(config: DictConfig, **arguments: Any) -> Any:
    """What a config node with `_target_` describes; raises what its constructor raises, which Hydra wraps."""
    try:
        return instantiate(config, **arguments)
    except InstantiationException as error:
        raise error.__cause__ or error from None


def say_missing_files(run: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """A run that ends, when a file is missing, with the message alone and exit status 1: what to do is all it says."""

    @wraps(run)
    def quietly(config: DictConfig) -> None:
        try:
            run(config)
        except FileNotFoundError as error:
            raise SystemExit(str(error)) from None

    return quietly


def as_list(value: str | int | Sequence | None) -> list[str] | None:
    """What an option that takes one name or a list of them was given; None where it was left out."""
    if value is None:
        return None
    return [str(value)] if isinstance(value, str | int) else [str(v) for v in value]


def check_whole_number(options: Mapping, name: str, least: int) -> None:
    """An option must be an int of `least` or more."""
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value} must be a whole number, {least} at least.")


def is_positive(value: object) -> bool:
    """Whether an option is a finite number above zero."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def check_temperature(value: object) -> None:
    """A temperature must be a number, 0 at least."""
    if value != 0 and not is_positive(value):
        raise InputError(f"temperature={value} must be a number, 0 at least.")


def check_choice(options: Mapping, name: str, choices: tuple[str | None, ...]) -> None:
    """An option must be one of a few."""
    if options[name] not in choices:
        said = ", ".join("null" if choice is None else choice for choice in choices)
        raise InputError(f"{name}={options[name]} is not known; choose from {said}.")


def read_device(name: str) -> torch.device:
    """The device of a name, tried out; see `mega_common.device.read_device`."""
    try:
        return device.read_device(name)
    except ValueError as error:
        raise InputError(str(error)) from None


def read_precision(asked: str, on: torch.device) -> str:
    """The precision of a name, fp32 or bf16; auto is what the device is good at."""
    try:
        return device.choose_precision(asked, on)
    except ValueError as error:
        raise InputError(str(error)) from None
