"""Boxes and the square crops that the networks see."""

import cv2
import numpy as np

# The image is blurred first if the crop shrinks it by more than this (beyond the factor 2 of bilinear sampling).
_BLUR_ABOVE = 1.1


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
    if shrinks_by > _BLUR_ABOVE:
        image, origin = _blur_around(image, square, sigma=(shrinks_by - 1) / 2)
        square = square - np.tile(origin, 2)
    if image.size == 0:
        return np.zeros((size, size, 3), np.float32)
    return warp_crop(image, crop_matrix(square, size), size).astype(np.float32)


def _blur_around(image: np.ndarray, square: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Blur the part of an image that the crop needs: (this part as float64, its origin (2,) px in the image).

    It includes the reach of the filter, so the crop is the same as if the whole image had been blurred.
    """
    radius = int(4 * sigma + 0.5)
    limit = np.array(image.shape[1::-1])
    start = np.clip(np.floor(square[:2]).astype(int) - radius - 2, 0, limit)
    stop = np.clip(np.ceil(square[2:]).astype(int) + radius + 3, 0, limit)
    part = image[start[1] : stop[1], start[0] : stop[0]].astype(np.float64)
    if part.size:
        kernel = (2 * radius + 1, 2 * radius + 1)
        part = cv2.GaussianBlur(part, kernel, sigma, borderType=cv2.BORDER_REPLICATE)
    return part, start
