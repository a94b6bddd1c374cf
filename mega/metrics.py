"""Errors of predicted meshes, and the evaluation protocols: which joints, which root, which alignment.

Functions return one number per mesh, in millimetres, and broadcast over batch dimensions: samples (B, Q, ...) can be
compared with the truth (B, 1, ...).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mega.geometry import fit_similarity, mean_distance

# Rows of the H36M regressor: right ankle, knee, hip; left hip, knee, ankle; right wrist, elbow, shoulder; left
# shoulder, elbow, wrist; neck; head.
_J14 = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)


@dataclass(frozen=True)
class Protocol:
    """How predicted and true meshes are compared.

    Attributes:
        name: printed with every number.
        joints: rows of the keypoint regressor for MPJPE and PA-MPJPE.
        root: rows whose mean is the origin of both bodies for PVE and MPJPE; None for the mean of all vertices.
        pa_pve: whether PA-PVE fits the similarity to the "vertices" or to the "joints".
        regressor: H36M's 17 rows, SMPL's 24, or the 23 keypoints that every body has (COCO's 17 first).
    """

    name: str
    joints: tuple[int, ...]
    root: tuple[int, ...] | None
    pa_pve: Literal["vertices", "joints"] = "vertices"
    regressor: Literal["h36m", "smpl", "body"] = "h36m"


#: The 17 COCO keypoints of a body's regressor, centred on the hips.
COCO17 = Protocol("coco17", joints=tuple(range(17)), root=(11, 12), regressor="body")
#: The published script: all 17 rows of the H36M regressor, centred on the vertices.
MEGA = Protocol("mega", joints=tuple(range(17)), root=None)
#: On 3DPW, as BEDLAM and CameraHMR: 14 of H36M's joints, centred on its joint 0, the pelvis.
STANDARD_3DPW = Protocol("standard", joints=_J14, root=(0,), pa_pve="joints")
#: On EMDB, as its official code: SMPL's 24 joints, centred on the hips.
STANDARD_EMDB = Protocol("standard", joints=tuple(range(24)), root=(1, 2), pa_pve="joints", regressor="smpl")
#: On 3DPW, as SPIN, WHAM and PromptHMR: 14 of H36M's joints, centred on the hips.
HIPS = Protocol("hips", joints=_J14, root=(_J14[2], _J14[3]), pa_pve="joints")

#: The protocols for validation during training.
PROTOCOLS = {protocol.name: protocol for protocol in (COCO17, MEGA)}


def mesh_errors(predicted: Tensor, true: Tensor, regressor: Tensor, protocol: Protocol) -> dict[str, Tensor]:
    """Mean distances between meshes after centring both on their roots (PVE, MPJPE) or fitting a similarity (PA-).

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
    """The origin (..., 1, 3) that a protocol gives a body with vertices (..., V, 3) and joints (..., J, 3)."""
    points = vertices if protocol.root is None else joints[..., list(protocol.root), :]
    return points.mean(dim=-2, keepdim=True)


def keypoint2d_error(predicted: Tensor, true: Tensor, margin: float = 1.0) -> Tensor:
    """Mean distance (...) of visible keypoints in longer sides of the person's box; NaN where none is visible.

    Args:
        predicted: (..., J, 2) crop coordinates in [-1, 1].
        true: (..., J, 3) crop coordinates and visibility.
        margin: side of the crop in longer sides of the box.
    """
    visible = true[..., 2] > 0
    distance = (predicted - true[..., :2]).norm(dim=-1) * margin / 2
    return (distance * visible).sum(dim=-1) / visible.sum(dim=-1)


def best_of(errors: Tensor, samples: int) -> Tensor:
    """The smallest error (B,) among the first `samples` of errors (B, Q)."""
    if not 1 <= samples <= errors.shape[1]:
        raise ValueError(f"The best of {samples} cannot be taken of {errors.shape[1]} samples.")
    return errors[:, :samples].min(dim=1).values
