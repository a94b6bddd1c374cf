"""What the scripts share on their way from a config to a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig


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
