"""Rotations, cameras, boxes and crops, Procrustes, distances: pure functions for any batch dimensions."""

from mega.geometry.cameras import (
    box_center_and_side,
    crop_camera_to_full,
    crop_to_pixels,
    default_focal,
    pixels_to_crop,
    project_perspective,
    project_weak_perspective,
)
from mega.geometry.crops import crop_matrix, square_box, square_crop, warp_crop
from mega.geometry.transforms import (
    MM_PER_M,
    matrix_to_rot6d,
    mean_distance,
    rot6d_to_matrix,
    sample_spread,
    standard_deviation,
)
from mesh_vq_vae.mesh_ops import Similarity, fit_similarity, procrustes_align

__all__ = [
    "MM_PER_M",
    "Similarity",
    "box_center_and_side",
    "crop_camera_to_full",
    "crop_matrix",
    "crop_to_pixels",
    "default_focal",
    "fit_similarity",
    "matrix_to_rot6d",
    "mean_distance",
    "pixels_to_crop",
    "procrustes_align",
    "project_perspective",
    "project_weak_perspective",
    "rot6d_to_matrix",
    "sample_spread",
    "square_box",
    "square_crop",
    "standard_deviation",
    "warp_crop",
]
