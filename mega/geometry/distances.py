"""Distances between meshes, in millimetres."""

import torch
from torch import Tensor

MM_PER_M = 1000.0


def mean_distance(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean distance of corresponding points (..., N, 3) in metres -> (...) mm."""
    return MM_PER_M * (predicted - true).norm(dim=-1).mean(dim=-1)


def sample_spread(samples: Tensor) -> tuple[Tensor, Tensor]:
    """How much samples (..., Q, V, 3) m of one body differ.

    Returns:
        Mean distance of a vertex between two different samples, (...) mm; NaN for a single sample.
        Mean distance of every vertex to its mean position over the samples, (..., V) mm.
    """
    n = samples.shape[-3]
    apart = torch.zeros(samples.shape[:-3], dtype=samples.dtype, device=samples.device)
    for i in range(1, n):  # pairs by rows: all at once would be Q^2 meshes
        apart = apart + mean_distance(samples[..., i, None, :, :], samples[..., :i, :, :]).sum(dim=-1)
    pairs = n * (n - 1) / 2
    around = samples - samples.mean(dim=-3, keepdim=True)
    return apart / pairs if pairs else apart * torch.nan, MM_PER_M * around.norm(dim=-1).mean(dim=-2)
