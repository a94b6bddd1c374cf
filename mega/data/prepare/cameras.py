"""What is known in the world, as a camera sees it; float64 arrays of N frames."""

from __future__ import annotations

import numpy as np
import roma
import torch

_TOLERANCE = 1e-2


def is_rigid(cam_ext: np.ndarray) -> np.ndarray:
    """(N,) whether (N, 4, 4) world -> camera are a rotation and a shift, which invalid cameras often are not."""
    rotation = cam_ext[:, :3, :3]
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
        upright = np.linalg.det(rotation) > 0
    return np.isfinite(cam_ext).all(axis=(1, 2)) & (off < _TOLERANCE) & upright


def turn_to_camera(root_orient: np.ndarray, cam_ext: np.ndarray) -> np.ndarray:
    """Axis-angle (N, 3) of the root in the world -> in the camera frame, R @ root."""
    root = roma.rotvec_to_rotmat(torch.from_numpy(root_orient))
    return roma.rotmat_to_rotvec(torch.from_numpy(cam_ext[:, :3, :3].copy()) @ root).numpy()


def world_to_camera(points: np.ndarray, cam_ext: np.ndarray) -> np.ndarray:
    """Points (N, J, 3) of the world -> the camera frame."""
    return points @ cam_ext[:, :3, :3].transpose(0, 2, 1) + cam_ext[:, None, :3, 3]


def project(points: np.ndarray, cam_int: np.ndarray) -> np.ndarray:
    """Points (N, J, 3) of the camera frame -> (N, J, 2) px; not finite for those that are not in front of it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
        return (points / ahead @ cam_int.transpose(0, 2, 1))[..., :2]
