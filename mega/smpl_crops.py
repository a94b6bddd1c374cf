"""Crops from the centre and scale of SMPL annotations, as in the published training and evaluation.

A person's box is the square of 200 * scale px around the centre. Corners of the box and points on the crop are
truncated to whole pixels, int(T p) + 1; annotations and weights were made this way. All other code in this
package is exact.
"""

import cv2
import numpy as np
import roma
import torch

from mega.geometry import crop_matrix

PIXELS_PER_SCALE = 200

# Index of each joint's mirror image, for SMPL's body joints, the 24 keypoints of `part`, and 17 of these.
MIRRORED_SMPL = (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22)
MIRRORED_PART24 = (5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, *range(12, 20), 21, 20, 23, 22)
MIRRORED_PART17 = (5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, *range(12, 17))
#: Rows of the 24 keypoints that are the 17 of H36M's order.
PART24_TO_17 = (*range(13), 18, 14, 16, 17)


def annotated_matrix(center: np.ndarray, scale: float, size: int, degrees: float = 0.0) -> np.ndarray:
    """The affine map (2, 3) from pixels to a crop of `size`, rotated anticlockwise as displayed; not truncated.

    Raises ValueError when the box has no area.
    """
    half = PIXELS_PER_SCALE * scale / 2
    if not half > 0:
        raise ValueError(f"The box of scale {scale} has no area.")
    center = np.asarray(center, np.float64)
    return crop_matrix(np.concatenate([center - half, center + half]), size, -degrees)


def truncated_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 2) mapped by (2, 3) in 1-based pixels and truncated: int64 (..., 2)."""
    moved = (np.asarray(points, np.float64) - 1) @ matrix[:, :2].T + matrix[:, 2]
    return moved.astype(np.int64) + 1


def keypoints_on_crop(
    keypoints: np.ndarray, center: np.ndarray, scale: float, size: int, degrees: float = 0.0
) -> np.ndarray:
    """Keypoints (J, 3) x, y px and confidence -> (J, 3) float32, x and y in [-1, 1] on the crop. Makes a copy."""
    whole = truncated_points(keypoints[:, :2] + 1, annotated_matrix(center, scale, size, degrees))
    return np.column_stack([2 * whole / size - 1, keypoints[:, 2]]).astype(np.float32)


def mirror_keypoints(keypoints: np.ndarray, mirrored: tuple[int, ...]) -> np.ndarray:
    """Keypoints (..., J, C) of a crop, x first and centred on 0, mirrored. Makes a copy."""
    flipped = keypoints[..., list(mirrored), :].copy()
    flipped[..., 0] *= -1
    return flipped


def mirror_pose(pose: np.ndarray) -> np.ndarray:
    """Axis-angle (..., J, 3) of SMPL's joints, root first, mirrored."""
    return pose[..., list(MIRRORED_SMPL[: pose.shape[-2]]), :] * np.array([1.0, -1.0, -1.0])


def turn_in_crop(degrees: float) -> np.ndarray:
    """(3, 3) rotation of the camera frame for a crop rotated by `degrees` anticlockwise."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


def turn_root(root_orient: np.ndarray, degrees: float) -> np.ndarray:
    """Axis-angle (3,) of a body in a crop rotated by `degrees` anticlockwise."""
    turned = torch.from_numpy(turn_in_crop(degrees)) @ roma.rotvec_to_rotmat(torch.as_tensor(root_orient).double())
    return roma.rotmat_to_rotvec(turned).numpy()


def annotated_crop(image: np.ndarray, center: np.ndarray, scale: float, size: int, degrees: float = 0.0) -> np.ndarray:
    """Crop a person's box from an image (H, W, 3) uint8 -> (size, size, 3) float64 in [0, 255], black outside.

    The box, with corners in whole pixels, is rotated about its centre and then resized, both bilinearly.
    """
    inverse = cv2.invertAffineTransform(annotated_matrix(center, scale, size))
    corners = truncated_points(np.array([[1, 1], [size + 1, size + 1]]), inverse) - 1
    if (corners[1] <= corners[0]).any():
        raise ValueError(f"The box of scale {scale} around {list(center)} is smaller than a pixel.")
    pad = 0
    if degrees:
        # Margin for what the rotation moves into the box.
        pad = int(np.linalg.norm(corners[1] - corners[0]) / 2 - (corners[1, 1] - corners[0, 1]) / 2)
    width, height = corners[1] - corners[0] + 2 * pad
    to_region = np.column_stack([np.eye(2), pad - corners[0]])  # whole pixels, so nothing is interpolated
    region = cv2.warpAffine(image, to_region, (width, height), flags=cv2.INTER_NEAREST).astype(np.float64)
    if degrees:
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
        region = cv2.warpAffine(region, turn, (width, height))
        region = region[pad : height - pad, pad : width - pad]
    return cv2.resize(region, (size, size))


def patch_matrix(center: np.ndarray, scale: float, size: int, degrees: float = 0.0) -> np.ndarray:
    """The affine map (2, 3) to the ViT's crop: the box itself, rotated anticlockwise, not truncated.

    It is fitted to three points in float32 (the centre and the middles of the lower and right edges), as published;
    float64 would change some pixels by one level.
    """
    exact = annotated_matrix(center, scale, size, degrees)
    on_crop = np.array([[1, 1], [1, 2], [2, 1]]) * (size / 2)
    in_picture = (on_crop - exact[:, 2]) @ np.linalg.inv(exact[:, :2]).T
    return cv2.getAffineTransform(in_picture.astype(np.float32), on_crop.astype(np.float32))


def patch_keypoints(
    keypoints: np.ndarray, center: np.ndarray, scale: float, size: int = 256, degrees: float = 0.0
) -> np.ndarray:
    """Keypoints (J, 3) x, y px and confidence -> (J, 3) float32, x and y in [-1, 1] on the ViT's crop. Makes a copy."""
    matrix = patch_matrix(center, scale, size, degrees)
    on_crop = keypoints[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    return np.column_stack([2 * on_crop / size - 1, keypoints[:, 2]]).astype(np.float32)


def patch_crop(
    image: np.ndarray, center: np.ndarray, scale: float, size: int = 256, degrees: float = 0.0, mirrored: bool = False
) -> np.ndarray:
    """The ViT's crop (size, size, 3) uint8 of an image (H, W, 3).

    With `mirrored` the image is mirrored first and then rotated: the keypoints are those of `patch_keypoints` with
    -degrees, mirrored (`mirror_keypoints`).
    """
    if mirrored:
        image = np.ascontiguousarray(image[:, ::-1])
        center = np.array([image.shape[1] - 1 - center[0], center[1]])
    return cv2.warpAffine(image, patch_matrix(center, scale, size, degrees), (size, size), flags=cv2.INTER_LINEAR)
