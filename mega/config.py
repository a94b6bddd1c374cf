"""What the scripts share on their way from a config to a run.

Options of the scripts, checked: a wrong one is an InputError that says what is allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import hydra
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from mega.data.photos import InputError
from mega.external_files import CONFIGS
from mega_common.device import choose_precision


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
    """The device of a name, tried out; auto is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InputError(f"device={name} cannot be used: {reason}") from None
    return device


def read_precision(asked: str, device: torch.device) -> str:
    """The precision of a name, fp32 or bf16; auto is what the device is good at."""
    try:
        return choose_precision(asked, device)
    except ValueError as error:
        raise InputError(str(error)) from None


def main(config_name: str) -> Callable[[Callable[[DictConfig], int | None]], Callable[[], None]]:
    """Make a function of the config the entry point of a script; replaced by the typed one of the branch `config`."""

    def decorate(task: Callable[[DictConfig], int | None]) -> Callable[[], None]:
        @wraps(task)
        def run() -> None:
            statuses = []

            @wraps(task)
            def job(config: DictConfig) -> None:
                try:
                    statuses.append(task(config) or 0)
                except (OSError, ValueError) as error:
                    print(error, file=sys.stderr)
                    statuses.append(1)

            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            sys.exit(max(statuses, default=0))

        return run

    return decorate
