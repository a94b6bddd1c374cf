"""A trained CVQMAE as one safetensors file that says itself how to build the model.

The metadata entry `config` is JSON:

    {"model": {"n_tokens", "codebook_size", "dim", "encoder_depth", …, "cond_dim"},     arguments of CVQMAE
     "backbone": "efficientnet_lite0",                                                  a name in BACKBONES
     "backbone_args": {"output_stride": 32},                                            its arguments; may be left out
     "crop": {"size": px, "margin": …, "mean": [r, g, b], "std": [r, g, b]}}            how its pictures were prepared
"""

import json
import os
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mega.backbones import EfficientNetLite0
from mega.models.cvqmae import CVQMAE

FORMAT = "CVQMAE"
BACKBONES = {"efficientnet_lite0": partial(EfficientNetLite0, pretrained=False)}
_SHOWN = 8  # how many differences an error lists


def save_cvqmae(model: CVQMAE, path: str | Path, config: dict, dtype: torch.dtype = torch.float32) -> None:
    """Write weights and config to one file, whole or not at all.

    Args:
        config: see the module's docstring; more entries are kept and returned by `load_cvqmae`.
        dtype: of the floating point weights, e.g. torch.float16 for half the size.
    """
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    # A tensor that two names share is written twice: safetensors would refuse it otherwise.
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary, metadata={"format": FORMAT, "config": json.dumps(config)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_cvqmae(path: str | Path) -> tuple[CVQMAE, dict]:
    """Read a file written by `save_cvqmae`: (the model in eval mode, float32, on the CPU; its config). Strict.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no CVQMAE, or its weights do not fit its config; names what differs.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The image model's weights {path} are missing.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}.") from error
    if metadata.get("format", FORMAT) != FORMAT or "config" not in metadata:
        raise ValueError(f"{path} holds no CVQMAE with its config (format: {metadata.get('format', 'not given')}).")
    try:
        config = json.loads(metadata["config"])
        backbone = BACKBONES[config["backbone"]](**config.get("backbone_args", {}))
        model = CVQMAE(backbone, **config["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The config in {path} does not describe a CVQMAE: {error}.") from error
    own = model.state_dict()
    if differences := _differences(own, state):
        more = f", and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ValueError(f"The weights in {path} do not fit its config: {'; '.join(differences[:_SHOWN])}{more}.")
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=True)
    return model.eval(), config


def _differences(own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    return [
        *(f"{k} is missing" for k in sorted(own.keys() - state.keys())),
        *(f"{k} is not in the model" for k in sorted(state.keys() - own.keys())),
        *(
            f"{k} has shape {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in sorted(own.keys() & state.keys())
            if state[k].shape != own[k].shape
        ),
    ]
