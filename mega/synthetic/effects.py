"""What comes between the scene and the file: things in front of people, and the camera's own faults."""

import cv2
import numpy as np

from mega.synthetic.backgrounds import random_texture


def random_occluder(rng: np.random.Generator, size: tuple[int, int], box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Something in front of a person.

    Args:
        size: (w, h) of the picture, px.
        box: (4,) the person's box, px.

    Returns:
        Its mask (h, w) float32 in [0, 1] and its colours (h, w, 3).
    """
    width, height = size
    mask = np.zeros((height, width), np.float32)
    extent = box[2:] - box[:2]
    center = box[:2] + rng.random(2) * extent
    kind = rng.integers(4)
    if kind == 0:  # a pole or a bar
        angle = rng.choice((0.0, np.pi / 2)) + rng.normal(0, 0.15)
        reach = 2 * np.array([np.cos(angle), np.sin(angle)]) * max(width, height)
        ends = [tuple((center + sign * reach).astype(int).tolist()) for sign in (-1, 1)]
        cv2.line(mask, *ends, 1.0, max(2, int(rng.uniform(0.03, 0.12) * extent.max())), cv2.LINE_AA)
    elif kind == 1:  # a table, a wall, a car: everything below a line
        top = int(box[1] + extent[1] * rng.uniform(0.55, 0.9))
        mask[max(top, 0) :] = 1.0
    elif kind == 2:
        half = (rng.uniform(0.08, 0.25, 2) * extent.max()).astype(int) + 1
        cv2.ellipse(mask, _point(center), _point(half), 180 * rng.random(), 0, 360, 1.0, -1, cv2.LINE_AA)
    else:
        corners = center + rng.uniform(-0.3, 0.3, (rng.integers(3, 7), 2)) * extent.max()
        cv2.fillConvexPoly(mask, cv2.convexHull(corners.astype(np.int32)), 1.0, cv2.LINE_AA)
    return mask, random_texture(rng, size)


def photograph(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """The camera's part: exposure, colour cast, blur, coarse sampling, noise. (h, w, 3) in [0, 1] -> uint8."""
    height, width = picture.shape[:2]
    gain = rng.uniform(0.75, 1.2) * (1 + 0.05 * rng.standard_normal(3))
    picture = picture * gain.astype(np.float32)
    if rng.random() < 0.04:
        picture = picture.mean(axis=2, keepdims=True).repeat(3, axis=2)
    kind = rng.random()
    if kind < 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.5))
    elif kind < 0.28:
        picture = cv2.filter2D(picture, -1, _motion_kernel(rng))
    elif kind < 0.36:
        factor = rng.uniform(0.35, 0.8)
        small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        picture = picture + rng.uniform(0.005, 0.05) * rng.standard_normal(picture.shape, np.float32)
    return (picture * 255 + 0.5).clip(0, 255).astype(np.uint8)


def _motion_kernel(rng: np.random.Generator) -> np.ndarray:
    size = int(rng.choice((3, 5, 7)))
    kernel = np.zeros((size, size), np.float32)
    angle = np.pi * rng.random()
    half = np.array([np.cos(angle), np.sin(angle)]) * (size - 1) / 2
    middle = np.full(2, (size - 1) / 2)
    cv2.line(kernel, _point(np.round(middle - half)), _point(np.round(middle + half)), 1.0, 1)
    return kernel / kernel.sum()


def _point(values: np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])
