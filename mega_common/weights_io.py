"""Weights on disk: our safetensors files, which store their configuration and are read strictly, and the released
`torch.save` files, which may hold more than the model.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mega_common.file_kinds import file_kind, unreadable
from mega_common.files import write_whole

log = logging.getLogger(__name__)

_SHOWN = 8  # how many differences an error lists


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], format: str, config: dict) -> None:
    """Write tensors to a safetensors file with metadata `format` and `config` (JSON), completely or not at all."""
    # Copies, since safetensors refuses tensors that share memory.
    copies = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    write_whole(path, save(copies, metadata={"format": format, "config": json.dumps(config)}))


def read_weights(path: str | Path, format: str) -> tuple[dict[str, Tensor], dict]:
    """(tensors, config) of a file written by `write_weights`.

    Raises FileNotFoundError when there is no such file; ValueError when it is damaged or of another format.
    """
    path = Path(path)
    _check_is_file(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise unreadable(path, "safetensors", error) from error
    if metadata.get("format") != format or "config" not in metadata:
        raise ValueError(
            f"{path} holds no {format} with its config (format: {metadata.get('format', 'not given')}); "
            f"it holds {content_in_words(tensors)}."
        )
    try:
        return tensors, json.loads(metadata["config"])
    except json.JSONDecodeError as error:
        raise ValueError(f"The config in {path} is not JSON: {error}.") from error


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        # `torch.save` writes a zip archive, which some browsers unpack.
        raise ValueError(f"{path} is a folder, but a file of weights is expected (has an archive been unpacked?).")
    if not path.is_file():
        raise FileNotFoundError(f"The weights {path} are missing.")


def weights_format(path: str | Path) -> str | None:
    """The `format` in the metadata of a safetensors file; None if there is none or it is no such file."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format")
    except (SafetensorError, OSError):
        return None


def is_released(path: str | Path) -> bool:
    """Whether a file was written by `torch.save` and not by us. False if it is missing."""
    path = Path(path)
    return path.is_file() and path.suffix != ".safetensors" and weights_format(path) is None


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a released file: the entry "model" of a dict written by `torch.save`.

    Keys may begin with `module.`, from data-parallel training. Nothing in the file is executed: it may hold tensors,
    plain Python and numpy numbers (losses) only. Raises FileNotFoundError, or ValueError that says what is wrong.
    """
    content = read_torch(path)
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(
            f"{path} is not a released checkpoint: it has no entry 'model' with a state dict, but "
            f"{content_in_words(content)}."
        )
    return {k.removeprefix("module."): v for k, v in state.items()}


def read_torch(path: str | Path) -> object:
    """What a file written by `torch.save` holds: tensors, plain Python and numpy numbers only; nothing is executed.

    Raises FileNotFoundError, or ValueError that says what is wrong.
    """
    path = Path(path)
    _check_is_file(path)
    scalar = np._core.multiarray.scalar  # the class of a pickled numpy number; old files say `numpy.core`
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "bool")]
    try:
        numbers = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]
        with torch.serialization.safe_globals(numbers), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        found = re.search(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)", str(error))
        if found and file_kind(path).name == "torch":
            raise ValueError(
                f"{path} holds objects other than tensors and numbers ({found[1]}), and was not opened: it is of "
                "another model or program."
            ) from error
        raise unreadable(path, "torch", "it is damaged or cut short: fetch the file again") from error


# What the names of tensors show, most particular first.
_MODELS = {
    r"(module\.)?vq_vae\.": "a tokenizer (MeshVQVAE)",
    r"(module\.)?decoder\.cond_emb": "an image model (CVQMAE)",
    r"(module\.)?encoder\.pos_embedding": "a prior over bodies (VQMAE)",
    r"(\w+\.)*stage4\.": "HRNet",
    r"(\w+\.)*layer4\.": "ResNet",
    r"(\w+\.)*blocks\.\d+\.attn": "a vision transformer",
    r"v_template|shapedirs": "a body model",
}


def content_in_words(content: object) -> str:
    """What a file of weights holds, for messages: the model if it is known, else the first names."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if "pytorch-lightning_version" in content:
        return "a training state (.ckpt), from which mode=export makes weights"
    inner = next((content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), content)
    for pattern, name in _MODELS.items():
        if any(re.match(pattern, str(key)) for key in inner):
            return f"the weights of {name}"
    return f"{', '.join(map(str, [*content][:3])) or 'nothing'}{', …' if len(content) > 3 else ''}"


def to_dtype(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast the floating-point tensors of a state dict, e.g. to torch.float16 for half the size.

    Raises ValueError that names the tensor if a number is too large for the type.
    """
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    for key, value in cast.items():
        if value.is_floating_point() and not torch.equal(value.isfinite(), state[key].isfinite()):
            raise ValueError(f"{key} has numbers too large for {dtype}: write the weights in torch.float32.")
    return cast


def without_surplus(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | Path, never: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The state dict of a released file, without the keys that a model does not have; a warning names them.

    Keys that show that the file is for another model stay, so that `load_strictly` refuses it: further layers of a
    stack that the model has, and keys that begin with one of `never`.

    Args:
        own: state dict of the model; state: state dict of the file at `path`.
    """
    stacks = {re.sub(r"\d+", "#", key) for key in own}
    surplus = [k for k in state if re.sub(r"\d+", "#", k) not in stacks and not k.startswith(never)]
    if surplus:
        log.warning("%s holds more than the model, which is ignored: %s.", path, ", ".join(sorted(surplus)))
    return {k: v for k, v in state.items() if k not in surplus}


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state dict, casting tensors to the model's types.

    Raises ValueError that names the keys and shapes of the file at `path` that differ; the model is unchanged then.
    """
    own = model.state_dict()
    if found := differences(own, state):
        raise ValueError(
            f"The weights in {path} do not fit this {type(model).__name__}: {found}. "
            f"The file holds {content_in_words(dict(state))}."
        )
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=True)


def differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The differences in keys and shapes that keep `state` from being loaded as `own`, in words; empty if none."""
    found = [f"{k} is missing" for k in sorted(own.keys() - state.keys())]
    found += [f"{k} is not in the model" for k in sorted(state.keys() - own.keys())]
    for k in sorted(own.keys() & state.keys()):
        if state[k].shape != own[k].shape:
            found.append(f"{k} has shape {tuple(state[k].shape)} instead of {tuple(own[k].shape)}")
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more
