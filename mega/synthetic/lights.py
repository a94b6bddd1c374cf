"""Light on bodies: a sky, a ground, one or two lamps, and the shadows that the body throws on itself."""

from collections.abc import Callable

import numpy as np

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

    A shadow map: the vertices fall into cells across the light; in each, the one nearest to the lamp throws the shadow.
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
