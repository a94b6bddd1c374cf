"""Errors of meshes against the truth, in millimetres, one number a mesh: averaging is left to the caller.

All functions take any batch dimensions, so samples (B, Q, ...) against the truth (B, 1, ...) need no loop.
"""

import torch
from torch import Tensor

from mega.geometry import fit_similarity, mean_distance
from mega.metrics.protocols import Protocol


def mesh_errors(predicted: Tensor, true: Tensor, regressor: Tensor, protocol: Protocol) -> dict[str, Tensor]:
    """Mean distances between meshes, after their roots are brought together (PVE, MPJPE) or the best similarity (PA).

    Args:
        predicted, true: (..., V, 3) metres, both in the camera's orientation; batch dimensions broadcast.
        regressor: (J, V), keypoints as weighted sums of vertices.
        protocol: joints, root and alignment.

    Returns:
        {"PVE", "MPJPE", "PA-MPJPE", "PA-PVE"}: (...) mm each.
    """
    predicted, true = torch.broadcast_tensors(predicted, true)
    predicted_joints, true_joints = regressor @ predicted, regressor @ true  # (..., J, 3)
    predicted_root = root_of(predicted, predicted_joints, protocol)
    true_root = root_of(true, true_joints, protocol)
    predicted, predicted_joints = predicted - predicted_root, predicted_joints - predicted_root
    true, true_joints = true - true_root, true_joints - true_root

    joints = list(protocol.joints)
    predicted_joints, true_joints = predicted_joints[..., joints, :], true_joints[..., joints, :]
    by_joints = fit_similarity(predicted_joints, true_joints)
    by_protocol = by_joints if protocol.pa_pve == "joints" else fit_similarity(predicted, true)
    return {
        "PVE": mean_distance(predicted, true),
        "MPJPE": mean_distance(predicted_joints, true_joints),
        "PA-MPJPE": mean_distance(by_joints(predicted_joints), true_joints),
        "PA-PVE": mean_distance(by_protocol(predicted), true),
    }


def root_of(vertices: Tensor, joints: Tensor, protocol: Protocol) -> Tensor:
    """The point (..., 1, 3) on which a protocol centres a body of vertices (..., V, 3) and joints (..., J, 3)."""
    points = vertices if protocol.root is None else joints[..., list(protocol.root), :]
    return points.mean(dim=-2, keepdim=True)


def keypoint2d_error(predicted: Tensor, true: Tensor, margin: float = 1.0) -> Tensor:
    """Mean distance of visible keypoints as a share of the longer side of the person's box.

    Args:
        predicted: (..., J, 2) crop coordinates, in which the crop's side is 2.
        true: (..., J, 3) crop coordinates and visibility.
        margin: side of the crop in sides of the box.

    Returns:
        (...), NaN where nothing is visible.
    """
    visible = true[..., 2] > 0
    distance = (predicted - true[..., :2]).norm(dim=-1) * margin / 2
    return (distance * visible).sum(dim=-1) / visible.sum(dim=-1)


def best_of(errors: Tensor, samples: int) -> Tensor:
    """The least error (B,) of each one's first so many samples, of errors (B, Q)."""
    if not 1 <= samples <= errors.shape[1]:
        raise ValueError(f"The best of {samples} cannot be taken of {errors.shape[1]} samples.")
    return errors[:, :samples].min(dim=1).values
