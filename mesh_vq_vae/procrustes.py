"""The similarity (scale, rotation, translation) that brings one set of points closest to another."""

from typing import NamedTuple

import torch
from torch import Tensor


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation."""

    scale: Tensor  # (...)
    rotation: Tensor  # (..., 3, 3)
    translation: Tensor  # (..., 3)

    def __call__(self, points: Tensor) -> Tensor:
        """Move points (..., N, 3)."""
        return self.scale[..., None, None] * points @ self.rotation.mT + self.translation[..., None, :]


def fit_similarity(source: Tensor, target: Tensor) -> Similarity:
    """Least-squares similarity from `source` to `target`; a rotation, never a mirror image.

    Args:
        source, target: (..., N, 3) with any batch dimensions; the last is always the coordinates. A source whose points
            all coincide is moved to the target's mean (scale 0).

    Source: Umeyama, Least-squares estimation of transformation parameters between two point patterns, TPAMI 1991.
    """
    source_mean, target_mean = source.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    x, y = source - source_mean, target - target_mean
    u, singular, vh = torch.linalg.svd(y.mT @ x)
    sign = torch.ones_like(singular)
    sign[..., -1] = torch.where(torch.det(u @ vh) < 0, -1.0, 1.0)
    rotation = (u * sign[..., None, :]) @ vh
    variance = x.square().sum((-2, -1))
    scale = (singular * sign).sum(-1) / variance.clamp_min(torch.finfo(variance.dtype).tiny)
    moved_mean = scale[..., None, None] * source_mean @ rotation.mT
    return Similarity(scale, rotation, (target_mean - moved_mean).squeeze(-2))


def procrustes_align(source: Tensor, target: Tensor) -> Tensor:
    """Points (..., N, 3) of `source` moved by the similarity that brings them closest to `target`."""
    return fit_similarity(source, target)(source)
