"""Backbones that come trained: their users' files, strict but for the heads that those networks had."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from mega.backbones.hrnet import HRNetW48
from mega.backbones.resnet import ResNet50
from mega.backbones.vit import ViT
from mega.user_files import require
from mesh_vq_vae.files import load_strictly

# What such a file may have beyond the backbone: heads for poses or classes.
_HEADS = {
    HRNetW48: ("final_layer.",),
    ResNet50: ("fc.", "deconv_layers.", "final_layer."),
    ViT: ("keypoint_head.", "head."),
}
# What the file lacks, and keeps its initial values.
_NEW = {HRNetW48: ("downsample_stage_", "final_layer.")}
_RESNET_LAYERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def load_pretrained(backbone: HRNetW48 | ResNet50 | ViT, path: str | Path) -> None:
    """Weights of a file (a state dict, perhaps under the key `state_dict`) into a backbone.

    Raises FileNotFoundError with the file's source, or ValueError that names what differs; nothing is loaded then.
    """
    kind = type(backbone)
    state = {k.removeprefix("module.").removeprefix("backbone."): v for k, v in _read(Path(path)).items()}
    state = {k: v for k, v in state.items() if not k.startswith(_HEADS[kind])}
    if kind is ResNet50:
        state = {_numbered(k): v for k, v in state.items()}
    new = {k: v for k, v in backbone.state_dict().items() if k.startswith(_NEW.get(kind, ("\0",)))}
    load_strictly(backbone, {**state, **new}, path)


def _read(path: Path) -> dict[str, Tensor]:
    require(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is damaged, cut short, or holds more than weights.") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} is no state dict of a backbone.")
    return state


def _numbered(key: str) -> str:
    """torchvision's name of a layer -> its number."""
    layer, _, rest = key.partition(".")
    return f"{_RESNET_LAYERS.get(layer, layer)}.{rest}"
