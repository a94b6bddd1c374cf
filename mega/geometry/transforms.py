"""The continuous 6-D representation of rotations that the network predicts, and distances between meshes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rot6d_to_matrix(rot6d: Tensor) -> Tensor:
    """Gram-Schmidt on two 3-vectors, which become the first two ROWS of the matrix (the convention of PyTorch3D).

    Args:
        rot6d: (..., 6), any two vectors that are not parallel.

    Returns:
        (..., 3, 3) rotation matrices.

    Source: Zhou et al., On the Continuity of Rotation Representations in Neural Networks, CVPR 2019.
    """
    first, second = rot6d[..., :3], rot6d[..., 3:]
    x = F.normalize(first, dim=-1)
    y = F.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    z = torch.linalg.cross(x, y, dim=-1)
    return torch.stack([x, y, z], dim=-2)


def matrix_to_rot6d(matrix: Tensor) -> Tensor:
    """The first two rows of (..., 3, 3) rotation matrices, as (..., 6): the inverse of `rot6d_to_matrix`."""
    return matrix[..., :2, :].flatten(-2)


MM_PER_M = 1000.0


def mean_distance(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean distance of corresponding points (..., N, 3) in metres -> (...) mm."""
    return MM_PER_M * (predicted - true).norm(dim=-1).mean(dim=-1)


def sample_spread(samples: Tensor) -> tuple[Tensor, Tensor]:
    """How much samples (..., Q, V, 3) m of one body differ.

    Returns:
        Mean distance of corresponding vertices over all pairs of samples, (...) mm; NaN for a single sample.
        Mean distance of each vertex to its mean over the samples, (..., V) mm.
    """
    n = samples.shape[-3]
    apart = torch.zeros(samples.shape[:-3], dtype=samples.dtype, device=samples.device)
    for i in range(1, n):  # one sample at a time: all pairs at once would be Q^2 meshes
        apart = apart + mean_distance(samples[..., i, None, :, :], samples[..., :i, :, :]).sum(dim=-1)
    pairs = n * (n - 1) / 2
    around = samples - samples.mean(dim=-3, keepdim=True)
    return apart / pairs if pairs else apart * torch.nan, MM_PER_M * around.norm(dim=-1).mean(dim=-2)


def standard_deviation(samples: Tensor) -> Tensor:
    """Root mean square distance of points to their mean over samples (..., Q, N, 3) -> (..., N), in their unit."""
    offsets = samples - samples.mean(dim=-3, keepdim=True)
    return offsets.square().sum(dim=-1).mean(dim=-2).sqrt()
