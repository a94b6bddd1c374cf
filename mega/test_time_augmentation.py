"""The deterministic prediction of meshes from crops, with or without test-time augmentation (TTA).

prediction = predict_mesh(model, tokenizer, crops, decode="soft", tta="flip")

TTA averages the predictions for several views of a crop. The mean of different poses is closer to the truth on average,
but less plausible as a body than each of them. It is not part of the published method (tta="none").
"""

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import roma
import torch
from torch import Tensor

from mega.model import CVQMAE
from mega.sampling import Prediction, predict_deterministic, select_codes
from mesh_vq_vae import MeshVQVAE

TTA_CHOICES = ("none", "flip", "shift", "flip_shift")
_SHIFT = 0.04  # in sides of the crop


class _View(NamedTuple):
    """A crop whose content is moved by whole pixels, and then mirrored."""

    right: int = 0
    down: int = 0
    mirrored: bool = False


@torch.no_grad()
def predict_mesh(model: CVQMAE, tokenizer: MeshVQVAE, crops: Tensor, decode: str, tta: str = "none") -> Prediction:
    """The deterministic prediction for RGB crops (B, 3, S, S) in [0, 255], decoded.

    Args:
        decode: "argmax" or "soft", see `select_codes`.
        tta: "none"; "flip": the crop and its mirror image (2 times the work); "shift": the crop, and the crop moved by
            4 % of its side to each of the four sides (5 times); "flip_shift": both (10 times). Vertices and cameras are
            averaged as numbers, rotations are averaged and projected to SO(3); tokens, logits and features are those
            of the crop itself.

    Raises:
        ValueError: if `decode` or `tta` is not known, or the mesh cannot be mirrored.
    """
    check_tta(tta, tokenizer)
    crops = crops.float()
    prediction, *others = (_predict_view(model, tokenizer, crops, decode, v) for v in _views(tta, crops.shape[-1]))
    if others:
        for name in ("canonical", "rotation", "cam"):
            values = [getattr(p, name) for p in (prediction, *others)]
            setattr(prediction, name, sum(values) / len(values))
        prediction.rotation = roma.special_procrustes(prediction.rotation)
    return prediction


def check_tta(tta: str, tokenizer: MeshVQVAE) -> None:
    """Raise ValueError if `tta` is not known, or needs a mesh with a left and a right side and this one has none."""
    if tta not in TTA_CHOICES:
        raise ValueError(f"tta={tta} is not known; choose from {', '.join(TTA_CHOICES)}.")
    if "flip" in tta:
        _ = tokenizer.mirrored


def stored_tta(config: Mapping) -> str:
    """The TTA that the config of a weights file asks for: "none" if it says nothing.

    Files of earlier versions have it under "average", with "flip+shift" for "flip_shift".
    """
    return str(config.get("tta", config.get("average", "none"))).replace("+", "_")


def _views(tta: str, size: int) -> list[_View]:
    """The views of a crop of `size` px, the crop itself first."""
    step = max(1, round(_SHIFT * size))
    shifts = [(0, 0), (step, 0), (-step, 0), (0, step), (0, -step)] if "shift" in tta else [(0, 0)]
    sides = (False, True) if "flip" in tta else (False,)
    return [_View(*shift, mirrored) for shift, mirrored in product(shifts, sides)]


def _predict_view(model: CVQMAE, tokenizer: MeshVQVAE, crops: Tensor, decode: str, view: _View) -> Prediction:
    """The prediction for a view of the crops, transformed back to the crops themselves."""
    features = model.features(_look(crops, view).contiguous(memory_format=torch.channels_last))
    prediction = predict_deterministic(model, features)
    prediction.canonical = tokenizer.decode_codes(select_codes(tokenizer, prediction, decode))
    if view.mirrored:
        across = prediction.canonical.new_tensor([-1.0, 1.0, 1.0])  # x, in the body's frame and in the camera's
        prediction.canonical = prediction.canonical[:, tokenizer.mirrored.to(across.device)] * across
        prediction.rotation = across[:, None] * prediction.rotation * across
        prediction.cam = prediction.cam * prediction.cam.new_tensor([1.0, -1.0, 1.0])
    if view.right or view.down:
        # On the crop, whose side is 2, x2d = s (X + tx): moving the content by d moves tx by d / s.
        scale, shift = prediction.cam[:, :1], prediction.cam[:, 1:]
        moved = shift.new_tensor([view.right, view.down]) * 2 / crops.shape[-1]
        prediction.cam = torch.cat([scale, shift - moved / scale], dim=1)
    return prediction


def _look(crops: Tensor, view: _View) -> Tensor:
    """A view of crops (B, 3, S, S); the pixels of the edge are repeated where the content has moved away from it."""
    pixels = torch.arange(crops.shape[-1], device=crops.device)
    rows, columns = ((pixels - shift).clamp(0, len(pixels) - 1) for shift in (view.down, view.right))
    return crops[..., rows[:, None], columns.flip(0) if view.mirrored else columns]
