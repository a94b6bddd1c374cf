"""Rotations beyond what RoMa has: the continuous 6-D representation that the network predicts."""

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
