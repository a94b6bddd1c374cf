"""Options of the scripts, checked: a wrong one is an InputError that says what is allowed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mega.inference.images import InputError
from mega.precision import choose_precision


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
