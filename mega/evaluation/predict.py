"""Predictions of an image model for crops: one mesh a person, averaged over several views of the crop if so wished, or
many drawn at random.

    predicted = predict(subject, images, decode="soft", average="flip")
    tokens, score = draw(subject, images, 25, steps=5, temperature=1.0, rule="default", generator=generator)
    for canonical in sampled_canonical(subject, tokens): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import roma
import torch
import torch.nn.functional as F
from torch import Tensor

from mega.evaluation.subject import Subject
from mega.geometry import rot6d_to_matrix
from mega.models import codes_to_decode, predict_deterministic, sample

AVERAGES = ("none", "flip", "shift", "flip+shift")
_SHIFT = 0.04  # of the crop's side
_AVERAGED = ("canonical", "rotation", "cam")


@dataclass
class Predicted:
    """One mesh for each of B people."""

    canonical: Tensor  # (B, V, 3) m
    rotation: Tensor  # (B, 3, 3) canonical -> camera
    cam: Tensor  # (B, 3) weak perspective (s, tx, ty) on the crop
    tokens: Tensor  # (B, N) the likeliest ones, of the crop itself

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
def predict(subject: Subject, images: Tensor, decode: str, average: str = "none") -> Predicted:
    """The deterministic prediction for crops (B, 3, S, S), uint8 or float in [0, 255].

    Args:
        decode: "argmax" or "soft", see `mega.models.codes_to_decode`.
        average: the mean over several views of the crop. "flip" looks at it in a mirror, too (2 times the time);
            "shift" moves it by 4 % of its side to the four sides (5 times); "flip+shift" does both (10 times).
            Canonical vertices and cameras are averaged as numbers, rotations by their mean projected to SO(3). The mean
            of different postures lies closer to the truth, and is less of a body than each.

    Raises:
        ValueError: if `decode` or `average` is not known, or the mesh cannot be mirrored.
    """
    views = _views(average, size=images.shape[-1])
    seen = [_predict_view(subject, images, decode, view) for view in views]
    if len(seen) == 1:
        return seen[0]
    canonical, rotation, cam = (sum(getattr(p, name) for p in seen) / len(seen) for name in _AVERAGED)
    return Predicted(canonical, roma.special_procrustes(rotation), cam, seen[0].tokens)


def _views(average: str, size: int) -> list[_View]:
    """The views of a crop of `size` px to average over, the crop itself first."""
    if average not in AVERAGES:
        raise ValueError(f"average={average} is not known; choose from {', '.join(AVERAGES)}.")
    step = max(1, round(_SHIFT * size))
    shifts = [(0, 0), (step, 0), (-step, 0), (0, step), (0, -step)] if "shift" in average else [(0, 0)]
    sides = (False, True) if "flip" in average else (False,)
    return [_View(*shift, mirrored) for shift, mirrored in product(shifts, sides)]


def _predict_view(subject: Subject, images: Tensor, decode: str, view: _View) -> Predicted:
    """The prediction from a view of the crops, carried back to the crops themselves."""
    prediction = predict_deterministic(subject.model, subject.features(_look(images, view)))
    canonical = subject.tokenizer.decode_latents(codes_to_decode(subject.tokenizer, prediction, decode))
    rotation, cam = rot6d_to_matrix(prediction.rot6d), prediction.cam
    if view.mirrored:
        across = canonical.new_tensor([-1.0, 1.0, 1.0])  # x, in the body's frame and in the camera's
        canonical = canonical[:, subject.mirrored] * across
        rotation = across[:, None] * rotation * across
        cam = cam * cam.new_tensor([1.0, -1.0, 1.0])
    # On the crop, whose side is 2, x2d = s (X + tx): what moves the content by d moves tx by d / s.
    moved = cam.new_tensor([view.right, view.down]) * 2 / images.shape[-1]
    cam = torch.cat([cam[:, :1], cam[:, 1:] - moved / cam[:, :1]], dim=1)
    return Predicted(canonical, rotation, cam, prediction.tokens)


def _look(images: Tensor, view: _View) -> Tensor:
    """A view of crops (B, 3, S, S); where the content has moved away from, the edge's pixels are repeated."""
    reach = max(abs(view.right), abs(view.down))
    if reach:
        size = images.shape[-1]
        padded = F.pad(images.float(), (reach,) * 4, mode="replicate")
        top, left = reach - view.down, reach - view.right
        images = padded[..., top : top + size, left : left + size]
    return images.flip(-1) if view.mirrored else images


@torch.no_grad()
def draw(
    subject: Subject,
    images: Tensor,
    n: int,
    steps: int,
    temperature: float,
    rule: str,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Tokens drawn at random for crops (B, 3, S, S), and how likely the model finds them.

    Args:
        n: Q, samples for each.
        steps, temperature, rule, generator: see `mega.models.sample`.

    Returns:
        tokens (B, Q, N) int64.
        score (B, Q): the sum over the tokens of their log-probabilities given the picture alone; higher is likelier.
    """
    features = subject.features(images)
    tokens = sample(subject.model, features, n, steps, temperature, generator, rule)
    log_probabilities = predict_deterministic(subject.model, features).logits.log_softmax(-1)  # (B, N, K)
    return tokens, log_probabilities.gather(-1, tokens.mT).sum(1)


@torch.no_grad()
def sampled_canonical(subject: Subject, tokens: Tensor) -> Iterator[Tensor]:
    """Canonical meshes (B, V, 3) of tokens (B, Q, N), one sample of everybody at a time."""
    for drawn in tokens.unbind(1):
        yield subject.tokenizer.decode(drawn)
