"""Cameras: weak perspective on a crop, perspective on the image, and the conversion from one to the other.

Camera frame: x right, y down, z forward, metres. Pixel (0, 0) is the centre of the top left pixel. Crop coordinates are
in [-1, 1], 0 at the centre of the crop's box.
"""

import torch
from torch import Tensor

# Focal length, in units of the crop, that the published model assumes: 1000 px on a crop of 224 px.
DEFAULT_FOCAL_RATIO = 1000 / 224


def default_focal(image_size: Tensor) -> Tensor:
    """Focal length (...) in pixels that is assumed for an image of size (..., 2) if it is not known."""
    return DEFAULT_FOCAL_RATIO * image_size.max(dim=-1).values


def project_weak_perspective(points: Tensor, cam: Tensor) -> Tensor:
    """Project on the crop: x2d = s * (X + tx), y2d = s * (Y + ty).

    Args:
        points: (..., N, 3) metres, rotated into the camera frame but not moved.
        cam: (..., 3), (s, tx, ty).

    Returns:
        (..., N, 2) crop coordinates.
    """
    scale, shift = cam[..., None, :1], cam[..., None, 1:]
    return scale * (points[..., :2] + shift)


def project_perspective(points: Tensor, focal: Tensor | float, principal_point: Tensor) -> Tensor:
    """Project points of the camera frame on the image.

    Args:
        points: (..., N, 3) metres, in front of the camera (z > 0).
        focal: (...) or a number, pixels.
        principal_point: (..., 2) pixels.

    Returns:
        (..., N, 2) pixels.
    """
    focal = torch.as_tensor(focal, dtype=points.dtype, device=points.device)[..., None, None]
    return focal * points[..., :2] / points[..., 2:] + principal_point[..., None, :]


def box_center_and_side(box: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (..., 2) and longer side (...) of boxes (..., 4) = (x0, y0, x1, y1)."""
    corner, opposite = box[..., :2], box[..., 2:]
    return (corner + opposite) / 2, (opposite - corner).max(dim=-1).values


def pixels_to_crop(points: Tensor, box: Tensor) -> Tensor:
    """Pixels (..., N, 2) of the image -> coordinates on the square crop of boxes (..., 4)."""
    center, side = box_center_and_side(box)
    return (points - center[..., None, :]) * (2 / side)[..., None, None]


def crop_to_pixels(points: Tensor, box: Tensor) -> Tensor:
    """Coordinates (..., N, 2) on the square crop of boxes (..., 4) -> pixels of the image."""
    center, side = box_center_and_side(box)
    return points * (side / 2)[..., None, None] + center[..., None, :]


def crop_camera_to_full(cam: Tensor, box: Tensor, image_size: Tensor, focal: Tensor | float) -> Tensor:
    """Translation of a body in the camera of the full image, with the principal point at the image's centre.

    At the resulting depth the body has the size in the image that the weak perspective camera predicts.

    Args:
        cam: (..., 3), (s, tx, ty) on the crop.
        box: (..., 4) px, the box of the crop including its margin (`square_box`).
        image_size: (..., 2) px, width and height.
        focal: (...) or a number, pixels.

    Returns:
        (..., 3) metres, to be added to the rotated vertices.
    """
    center, side = box_center_and_side(box)
    scale = side * cam[..., 0] / 2  # pixels per metre
    focal = torch.as_tensor(focal, dtype=cam.dtype, device=cam.device)
    offset = (center - image_size / 2) / scale[..., None]
    return torch.cat([offset + cam[..., 1:], (focal / scale)[..., None]], dim=-1)
