"""Trained models as safetensors files that say themselves how to build the model.

The config of a CVQMAE file is

    {"model": {"n_tokens", "codebook_size", "dim", "encoder_depth", …, "cond_dim"},     arguments of CVQMAE
     "backbone": "blazepose",                                                           a name in BACKBONES
     "backbone_args": {},                                                               its arguments; may be left out
     "crop": {"size": px, "margin": …, "mean": [r, g, b], "std": [r, g, b],             how its pictures were prepared;
              "patch": bool},                                                           false if left out
     "decode": "argmax" | "soft",                                                       of predictions; may be left out
     "average": "none" | "flip" | "shift" | "flip+shift"}                               of predictions; may be left out

that of a VQMAE file has only "model". More entries are kept and returned.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mega.backbones import BlazePose, EfficientNetLite0, HRNetW48, ResNet50, ViT
from mega.external_files import require
from mega.model import CVQMAE, IMAGE_KEYS, VQMAE
from mega.sampling import DECODINGS
from mega.test_time_augmentation import AVERAGES
from mega_common.weights_io import (
    is_released,
    load_strictly,
    read_released,
    read_weights,
    to_dtype,
    without_surplus,
    write_weights,
)

BACKBONES = {
    "blazepose": BlazePose,
    "efficientnet_lite0": partial(EfficientNetLite0, pretrained=False),
    "hrnet_w48": HRNetW48,
    "resnet50": ResNet50,
    "vit_h": ViT,
}


def backbone_name(backbone: nn.Module) -> str:
    """The name in BACKBONES under which a file stores this backbone."""
    classes = {getattr(build, "func", build): name for name, build in BACKBONES.items()}
    return classes[type(backbone)]


def save_model(model: VQMAE | CVQMAE, path: str | Path, config: dict, dtype: torch.dtype = torch.float32) -> None:
    """Write weights and config to one file, whole or not at all.

    Args:
        config: see the module's docstring.
        dtype: of the floating point weights, e.g. torch.float16 for half the size.
    """
    write_weights(path, to_dtype(model.state_dict(), dtype), type(model).__name__, config)


def load_into(model: VQMAE | CVQMAE, path: str | Path) -> VQMAE | CVQMAE:
    """Weights, of a released file or of one of ours, into a model that a config has built; in eval mode.

    Strict, but for what a released file holds beyond the model (`without_surplus`).

    Raises as `load_cvqmae`.
    """
    load_strictly(model, read_state(path, type(model).__name__, model.state_dict()), path)
    return model.eval()


def read_state(path: str | Path, format: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a released file, or of one of ours that says it holds a `format` (VQMAE, CVQMAE).

    Of a released file, what the state dict `own` of the model has no place for is left out, unless it shows that an
    image model is taken for a prior.
    """
    require(path)
    if not is_released(path):
        return read_weights(path, format)[0]
    return without_surplus(own, read_released(path), path, IMAGE_KEYS if format == "VQMAE" else ())


def load_vqmae(path: str | Path) -> tuple[VQMAE, dict]:
    """Read a VQMAE file: (the model in eval mode, float32, on the CPU; its config). Strict, raises as `load_cvqmae`."""
    state, config = read_weights(path, "VQMAE")
    try:
        model = VQMAE(**config["model"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"The config in {path} does not describe a VQMAE: {error}.") from error
    load_strictly(model, state, path)
    return model.eval(), config


def load_cvqmae(path: str | Path) -> tuple[CVQMAE, dict]:
    """Read a CVQMAE file: (the model in eval mode, float32, on the CPU; its config). Strict.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no CVQMAE, or its weights do not fit its config; names what differs.
    """
    state, config = read_weights(path, "CVQMAE")
    try:
        backbone = BACKBONES[config["backbone"]](**config.get("backbone_args", {}))
        model = CVQMAE(backbone, **config["model"])
        _check_choices(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The config in {path} does not describe a CVQMAE: {error}.") from error
    load_strictly(model, state, path)
    return model.eval(), config


def _check_choices(config: dict) -> None:
    """Raise ValueError if a file asks for predictions that there are not."""
    for name, choices in (("decode", DECODINGS), ("average", AVERAGES)):
        if name in config and config[name] not in choices:
            raise ValueError(f"{name}={config[name]} is not one of {', '.join(choices)}")
    if config["backbone"] == "vit_h" and "cam_range" not in config["model"]:
        raise ValueError(
            "an earlier version wrote it, which cropped wider and knew one unit of the camera only; make it anew with "
            "convert_weights.py or train_mega.py"
        )
