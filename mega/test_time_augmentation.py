"""The deterministic prediction of a person's mesh from a crop, averaged over several views of the crop if so wished.

predicted = predict_mesh(model, tokenizer, crops, decode="soft", average="flip")

The mean of different postures lies closer to the truth, and is less of a body than each. Not published: MEGA looks at
the crop alone, average="none".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import roma
import torch
import torch.nn.functional as F
from torch import Tensor

from mega.geometry import rot6d_to_matrix
from mega.model import CVQMAE
from mega.sampling import codes_to_decode, predict_deterministic
from mega.tokenizer import decode_in_parts
from mesh_vq_vae import MeshVQVAE

AVERAGES = ("none", "flip", "shift", "flip_shift")
_SHIFT = 0.04  # of the crop's side
_AVERAGED = ("canonical", "rotation", "cam")


@dataclass
class Predicted:
    """One mesh for each of B people."""

    canonical: Tensor  # (B, V, 3) m
    rotation: Tensor  # (B, 3, 3) canonical -> camera
    cam: Tensor  # (B, 3) weak perspective (s, tx, ty) on the crop
    tokens: Tensor  # (B, N) the likeliest ones, of the crop itself
    features: Tensor  # (B, C, h, w) of the crop itself, for samples

    @property
    def mesh(self) -> Tensor:
        """(B, V, 3) m in the camera's orientation, not moved to its place."""
        return self.canonical @ self.rotation.mT


class _View(NamedTuple):
    """A crop changed a little: its content moved by whole pixels, then seen in a mirror."""

    right: int = 0
    down: int = 0
    mirrored: bool = False


@torch.no_grad()
def predict_mesh(model: CVQMAE, tokenizer: MeshVQVAE, crops: Tensor, decode: str, average: str = "none") -> Predicted:
    """The deterministic prediction for crops (B, 3, S, S), normalised as the backbone wants them.

    Args:
        decode: "argmax" or "soft", see `codes_to_decode`.
        average: the mean over several views of the crop. "flip" looks at it in a mirror, too (2 times the time);
            "shift" moves it by 4 % of its side to the four sides (5 times); "flip_shift" does both (10 times).
            Canonical vertices and cameras are averaged as numbers, rotations by their mean projected to SO(3).

    Raises:
        ValueError: if `decode` or `average` is not known, or the mesh cannot be mirrored.
    """
    check_average(average, tokenizer)
    seen = [_predict_view(model, tokenizer, crops, decode, view) for view in _views(average, crops.shape[-1])]
    itself = seen[0]
    if len(seen) == 1:
        return itself
    canonical, rotation, cam = (sum(getattr(p, name) for p in seen) / len(seen) for name in _AVERAGED)
    return Predicted(canonical, roma.special_procrustes(rotation), cam, itself.tokens, itself.features)


def check_average(average: str, tokenizer: MeshVQVAE) -> None:
    """Raise ValueError if an average is not known, or the tokenizer's mesh cannot be mirrored as it asks for."""
    if average not in AVERAGES:
        raise ValueError(f"average={average} is not known; choose from {', '.join(AVERAGES)}.")
    if "flip" in average:
        _ = tokenizer.mirrored


def _views(average: str, size: int) -> list[_View]:
    """The views of a crop of `size` px to average over, the crop itself first."""
    step = max(1, round(_SHIFT * size))
    shifts = [(0, 0), (step, 0), (-step, 0), (0, step), (0, -step)] if "shift" in average else [(0, 0)]
    sides = (False, True) if "flip" in average else (False,)
    return [_View(*shift, mirrored) for shift, mirrored in product(shifts, sides)]


def _predict_view(model: CVQMAE, tokenizer: MeshVQVAE, crops: Tensor, decode: str, view: _View) -> Predicted:
    """The prediction from a view of the crops, carried back to the crops themselves."""
    features = model.features(_look(crops, view).contiguous(memory_format=torch.channels_last))
    prediction = predict_deterministic(model, features)
    canonical = decode_in_parts(tokenizer, codes_to_decode(tokenizer, prediction, decode))
    rotation, cam = rot6d_to_matrix(prediction.rot6d), prediction.cam
    if view.mirrored:
        across = canonical.new_tensor([-1.0, 1.0, 1.0])  # x, in the body's frame and in the camera's
        canonical = canonical[:, tokenizer.mirrored.to(canonical.device)] * across
        rotation = across[:, None] * rotation * across
        cam = cam * cam.new_tensor([1.0, -1.0, 1.0])
    if view.right or view.down:
        # On the crop, whose side is 2, x2d = s (X + tx): what moves the content by d moves tx by d / s.
        moved = cam.new_tensor([view.right, view.down]) * 2 / crops.shape[-1]
        cam = torch.cat([cam[:, :1], cam[:, 1:] - moved / cam[:, :1]], dim=1)
    return Predicted(canonical, rotation, cam, prediction.tokens, features)


def _look(crops: Tensor, view: _View) -> Tensor:
    """A view of crops (B, 3, S, S); where the content has moved away from, the edge's pixels are repeated."""
    reach = max(abs(view.right), abs(view.down))
    if reach:
        size = crops.shape[-1]
        padded = F.pad(crops, (reach,) * 4, mode="replicate")
        top, left = reach - view.down, reach - view.right
        crops = padded[..., top : top + size, left : left + size]
    return crops.flip(-1) if view.mirrored else crops
