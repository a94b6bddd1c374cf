"""Cameras, boxes and crops, rotations, and distances between meshes; tensors may have any batch dimensions.

Camera frame: x right, y down, z forward, metres. Pixel (0, 0) is the centre of the top left pixel. Crop coordinates are
in [-1, 1], 0 at the centre of the crop's box.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mesh_vq_vae.mesh_ops import fit_similarity as fit_similarity
from mesh_vq_vae.mesh_ops import procrustes_align as procrustes_align

MM_PER_M = 1000.0
# Focal length, in units of the crop, that the published model assumes: 1000 px on a crop of 224 px.
DEFAULT_FOCAL_RATIO = 1000 / 224
# The image is blurred first if the crop shrinks it by more than this (beyond the factor 2 of bilinear sampling).
_BLUR_ABOVE = 1.1


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


def square_box(box: np.ndarray, margin: float = 1.0) -> np.ndarray:
    """The square (4,) with the centre of a box (4,) = (x0, y0, x1, y1) px, and its longer side times `margin`.

    Raises ValueError when the box is not four finite numbers or has no area.
    """
    box = np.asarray(box, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"A box is four finite numbers x0, y0, x1, y1 in pixels, not {box.tolist()}.")
    size = box[2:] - box[:2]
    if not (size > 0).all():
        raise ValueError(f"The box {box.tolist()} has no area: x1 must be above x0 and y1 above y0.")
    center, half = (box[:2] + box[2:]) / 2, size.max() * margin / 2
    return np.concatenate([center - half, center + half])


def crop_matrix(square: np.ndarray, size: int, degrees: float = 0.0) -> np.ndarray:
    """The affine map (2, 3) from pixels of the image to pixels of a crop of `size`.

    The centre of the square (4,) px is mapped to pixel size/2 of the crop, and the content is rotated about it by
    `degrees`, clockwise as displayed.
    """
    square = np.asarray(square, np.float64)
    scale = size / (square[2] - square[0])
    cos, sin = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    linear = np.array([[cos, -sin], [sin, cos]])
    center = (square[:2] + square[2:]) / 2
    return np.concatenate([linear, (size / 2 - linear @ center)[:, None]], axis=1)


def warp_crop(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Sample a crop (size, size, 3) of `image` (H, W, 3) at `crop_matrix`: bilinear, black outside. Keeps the dtype."""
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)


def square_crop(image: np.ndarray, box: np.ndarray, size: int, margin: float = 1.0) -> np.ndarray:
    """Crop the square around a box, as the published demo does: blur if it is shrunk, then bilinear sampling.

    Args:
        image: (H, W, 3) uint8.
        box: (4,) px; may lie partly or wholly outside the image, which is black there.
        size: side of the crop, pixels.
        margin: factor for the longer side of the box.

    Returns (size, size, 3) float32 in [0, 255]; raises ValueError for a box without area or another kind of image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"Expected a picture (H, W, 3) of uint8, got {image.shape} of {image.dtype}.")
    square = square_box(box, margin)
    shrinks_by = (square[2] - square[0]) / size / 2
    sigma = (shrinks_by - 1) / 2 if shrinks_by > _BLUR_ABOVE else 0.0
    if sigma or not image.flags.c_contiguous:  # of a view of a picture, OpenCV would copy all
        # Work on the part that the crop shows and the filter reaches: the crop is the same.
        radius = int(4 * sigma + 0.5)
        limit = np.array(image.shape[1::-1])
        start = np.clip(np.floor(square[:2]).astype(int) - radius - 2, 0, limit)
        stop = np.clip(np.ceil(square[2:]).astype(int) + radius + 3, 0, limit)
        image = image[start[1] : stop[1], start[0] : stop[0]]
        square = square - np.tile(start, 2)
    if sigma and image.size:
        kernel = (2 * radius + 1, 2 * radius + 1)
        image = cv2.GaussianBlur(image.astype(np.float64), kernel, sigma, borderType=cv2.BORDER_REPLICATE)
    if not image.size:
        return np.zeros((size, size, 3), np.float32)
    return warp_crop(image, crop_matrix(square, size), size).astype(np.float32)


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
