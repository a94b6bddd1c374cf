"""Light and shadows on bodies, occluders in front of people, and the flaws of a camera."""

from collections.abc import Callable

import cv2
import numpy as np

from mega.synthetic.backgrounds import random_texture

_SHADOW_CELL = 0.035  # metres; the drawn mesh has a vertex about every two centimetres
_SHADOW_BIAS = 0.05

Lights = Callable[[np.ndarray, np.ndarray], np.ndarray]


def random_lights(rng: np.random.Generator) -> Lights:
    """Lights as a function: vertices (V, 3) and unit normals (V, 3), camera frame -> linear RGB irradiance (V, 3)."""
    sky = _tint(rng, 0.05) * rng.uniform(0.35, 0.85)
    ground = _tint(rng, 0.08) * rng.uniform(0.1, 0.4)
    lamps = [(_towards_lamp(rng), _tint(rng, 0.10) * rng.uniform(0.45, 1.3))]
    if rng.random() < 0.35:
        lamps.append((_towards_lamp(rng), _tint(rng, 0.15) * rng.uniform(0.1, 0.6)))

    def irradiance(vertices: np.ndarray, normals: np.ndarray) -> np.ndarray:
        up = 0.5 - 0.5 * normals[:, 1:2]  # y points down
        openness = 0.45 + 0.55 * lit_share(vertices, np.array([0.0, -1.0, 0.0]))[:, None]
        light = up * sky * openness + (1 - up) * ground
        for direction, color in lamps:
            facing = np.clip(normals @ direction, 0, None) * lit_share(vertices, direction)
            light += facing[:, None] * color
        return light.astype(np.float32)

    return irradiance


def lit_share(vertices: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Which vertices (V,) see a far lamp in `direction` (3,) unit: 1, those behind others 0, edges between.

    A shadow map: the vertices fall into cells across the light; in each, the one nearest to the lamp casts the shadow.
    Two grids, half a cell apart, soften the edges.
    """
    across = np.linalg.svd(direction[None])[2][1:]  # (2, 3), a basis of the plane across the light
    across, direction = across.astype(np.float32), direction.astype(np.float32)
    place, height = vertices @ across.T, vertices @ direction
    place -= place.min(axis=0)
    lit = np.zeros(len(vertices), np.float32)
    for shift in (0.0, 0.5):
        cell = (place / _SHADOW_CELL + shift).astype(np.int32)
        index = cell[:, 0] * (cell[:, 1].max() + 1) + cell[:, 1]
        top = np.full(index.max() + 1, -np.inf, height.dtype)
        np.maximum.at(top, index, height)
        lit += 0.5 * (top[index] - height < _SHADOW_BIAS)
    return lit


def _towards_lamp(rng: np.random.Generator) -> np.ndarray:
    """A unit vector to a lamp: mostly above, from anywhere but straight behind the person."""
    direction = rng.standard_normal(3) * (1, 0.7, 0.8) + (0, -0.6, -0.5)
    return direction / np.linalg.norm(direction)


def _tint(rng: np.random.Generator, spread: float) -> np.ndarray:
    return np.clip(1 + spread * rng.standard_normal(3), 0.6, 1.4)


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
    """Camera effects: exposure, colour cast, blur, coarse sampling, noise. (h, w, 3) in [0, 1] -> uint8."""
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
