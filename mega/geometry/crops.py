"""Boxes and the square crops that the networks see."""

import cv2
import numpy as np

# A crop that shrinks the picture by more than this (beyond the factor 2 that bilinear sampling bears) is blurred first.
_BLUR_ABOVE = 1.1


def square_box(box: np.ndarray, margin: float = 1.0) -> np.ndarray:
    """The square around a box (4,) = (x0, y0, x1, y1) px with its centre, of its longer side times `margin`.

    Raises:
        ValueError: when the box is not four finite numbers or has no area.
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
    """The affine map (2, 3) from pixels of the picture to pixels of a crop of `size`.

    The centre of the square (4,) px comes to pixel size/2 of the crop. The content is turned by `degrees` about it,
    from the x axis to the y axis (clockwise as one sees it).
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
    """Cut the square around a box out of a picture, as the published demo does: blur when shrinking, then bilinear.

    Args:
        image: (H, W, 3) uint8.
        box: (4,) px; may lie partly or wholly outside the picture, which is black there.
        size: side of the crop, pixels.
        margin: what the longer side of the box is multiplied by.

    Returns:
        (size, size, 3) float32 in [0, 255].

    Raises:
        ValueError: when the box has no area or the image is not (H, W, 3) uint8.
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
    """Blur only the part of a picture that the crop sees: (that part as float64, its origin (2,) px in the picture).

    The part is wider than the square by the reach of the filter, so the crop is the same as if all had been blurred.
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
