"""Weights on disk: safetensors files that say what they hold, written whole or not at all, and read strictly."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_SHOWN = 8  # how many differences an error lists


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], format: str, config: dict) -> None:
    """Write tensors to a safetensors file with metadata `format` and `config` (as JSON), through a temporary file."""
    # A tensor that two names share is written twice: safetensors would refuse it otherwise.
    copies = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        save_file(copies, temporary, metadata={"format": format, "config": json.dumps(config)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_weights(path: str | Path, format: str) -> tuple[dict[str, Tensor], dict]:
    """(tensors, config) of a file written by `write_weights`.

    Raises FileNotFoundError when there is no such file; ValueError when it is damaged or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The weights {path} ({format}) are missing.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}.") from error
    if metadata.get("format") != format or "config" not in metadata:
        raise ValueError(f"{path} holds no {format} with its config (format: {metadata.get('format', 'not given')}).")
    try:
        return tensors, json.loads(metadata["config"])
    except json.JSONDecodeError as error:
        raise ValueError(f"The config in {path} is not JSON: {error}.") from error


def to_dtype(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The floating-point tensors of a state dict in another type, e.g. torch.float16 for half the size."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state dict, each tensor cast to the model's type.

    Raises ValueError that names the keys and shapes of the file at `path` that differ; nothing is loaded then.
    """
    own = model.state_dict()
    if found := differences(own, state):
        raise ValueError(f"The weights in {path} do not fit this {type(model).__name__}: {found}.")
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=True)


def differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What keeps `state` from being loaded in place of `own`, in words; empty when nothing does."""
    found = [
        *(f"{k} is missing" for k in sorted(own.keys() - state.keys())),
        *(f"{k} is not in the model" for k in sorted(state.keys() - own.keys())),
        *(
            f"{k} has shape {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in sorted(own.keys() & state.keys())
            if state[k].shape != own[k].shape
        ),
    ]
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more
