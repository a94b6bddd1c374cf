"""Everything in an image but the people: background, occluders, light and shadows, and the flaws of a camera.

Images are (h, w, 3) float32 in [0, 1].
"""

from collections.abc import Callable

import cv2
import numpy as np

from mega.synthetic.fabrics import random_color, random_photograph

_SHADOW_CELL = 0.035  # metres; the drawn mesh has a vertex about every two centimetres
_SHADOW_BIAS = 0.05


def random_background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A random kind of background of `size` (w, h), sometimes with clutter, sometimes out of focus."""
    makers = (_gradient, _room, _landscape, _photograph, _noise)
    picture = makers[rng.choice(len(makers), p=(0.08, 0.24, 0.20, 0.30, 0.18))](rng, size)
    if rng.random() < 0.6:
        picture = _add_clutter(rng, picture)
    if rng.random() < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 3.5))
    return picture


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Texture for a surface of `size` (w, h): noise or part of a photograph."""
    return (_photograph if rng.random() < 0.4 else _noise)(rng, size)


def _gradient(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    corners = np.stack([random_color(rng) for _ in range(4)]).reshape(2, 2, 3)
    return cv2.resize(corners, size, interpolation=cv2.INTER_LINEAR)


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Coloured noise of several octaves."""
    width, height = size
    field = np.zeros((height, width), np.float32)
    amplitude, cells = 1.0, rng.integers(2, 6)
    fall_off = rng.uniform(0.45, 0.85)
    while cells < 64:
        octave = rng.standard_normal((cells, cells)).astype(np.float32)
        field += amplitude * cv2.resize(octave, size, interpolation=cv2.INTER_CUBIC)
        amplitude, cells = amplitude * fall_off, cells * 2
    field = (0.5 + 0.35 * field / field.std())[..., None].clip(0, 1)
    first, second = random_color(rng), random_color(rng)
    return first + field * (second - first)


def _photograph(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A random piece of a photograph, mirrored, tinted, brighter or darker."""
    photo = random_photograph(rng)
    width, height = size
    scale = rng.uniform(0.35, 1.0) * min(photo.shape[1] / width, photo.shape[0] / height)
    w, h = int(width * scale), int(height * scale)
    x, y = rng.integers(photo.shape[1] - w + 1), rng.integers(photo.shape[0] - h + 1)
    piece = cv2.resize(photo[y : y + h, x : x + w], size, interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    tint = rng.uniform(0.75, 1.25) * (1 + 0.15 * rng.standard_normal(3))
    return np.ascontiguousarray((piece * tint).clip(0, 1), np.float32)


def _room(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Walls, a floor, and a few things on them."""
    width, height = size
    floor = int(height * rng.uniform(0.5, 0.9))
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = random_color(rng, neutral=0.7)
    corner = int(width * rng.uniform(-0.3, 1.3))
    if 0 < corner < width:  # a second wall, in other light
        picture[:, corner:] *= rng.uniform(0.7, 0.95)
    picture[floor:] = _texture(rng, (width, height - floor)) if rng.random() < 0.6 else random_color(rng, neutral=0.8)
    for _ in range(rng.integers(0, 5)):
        w, h = (rng.uniform(0.08, 0.45, 2) * size).astype(int)
        x, y = int(rng.uniform(-0.1, 0.95) * width), int(rng.uniform(0, 1) * max(floor - h, 1))
        if rng.random() < 0.4:  # it stands on the floor
            y = floor - h + int(rng.uniform(0, 0.1) * height)
        corners = (x, y), (x + w, y + h)
        cv2.rectangle(picture, *corners, random_color(rng).tolist(), -1, cv2.LINE_AA)
        cv2.rectangle(picture, *corners, random_color(rng).tolist(), int(rng.integers(1, 4)), cv2.LINE_AA)
    light = cv2.resize(rng.uniform(0.7, 1.15, (3, 3)).astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    return (picture * light[..., None]).clip(0, 1)


def _landscape(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Sky, ground, hills, houses or trees at the horizon."""
    width, height = size
    horizon = int(height * rng.uniform(0.25, 0.75))
    high = np.array([0.35, 0.55, 0.85]) + rng.normal(0, 0.12, 3)
    low = np.array([0.8, 0.86, 0.92]) + rng.normal(0, 0.08, 3)
    share = np.linspace(0, 1, height)[:, None, None]
    picture = np.tile((high + share * (low - high)).astype(np.float32), (1, width, 1))
    for _ in range(rng.integers(0, 8)):
        w, h = int(width * rng.uniform(0.08, 0.4)), int(horizon * rng.uniform(0.1, 0.9))
        x, color = int(rng.uniform(-0.1, 1) * width), random_color(rng, neutral=0.7).tolist()
        if rng.random() < 0.5:
            cv2.rectangle(picture, (x, horizon - h), (x + w, horizon), color, -1)
        else:
            green = [0.15 * rng.random(), rng.uniform(0.2, 0.45), 0.15 * rng.random()]
            cv2.ellipse(picture, (x, horizon), (max(w // 2, 1), max(h, 1)), 0, 180, 360, green, -1, cv2.LINE_AA)
    picture[horizon:] = _texture(rng, (width, height - horizon))
    return picture.clip(0, 1)


def _add_clutter(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Random shapes; some are long and skin-coloured, so that not everything that looks like a limb is one."""
    picture = np.ascontiguousarray(picture, np.float32)
    extent = picture.shape[1::-1]
    for _ in range(rng.integers(1, 9)):
        start = _point(rng.random(2) * extent)
        half_size = _point(rng.uniform(0.03, 0.25, 2) * extent[0])
        kind = rng.integers(3)
        if kind == 0:
            angle, color = 180 * rng.random(), random_color(rng).tolist()
            cv2.ellipse(picture, start, half_size, angle, 0, 360, color, -1, cv2.LINE_AA)
        elif kind == 1:
            polygon = (rng.uniform(-1, 1, (rng.integers(3, 6), 2)) * half_size + start).astype(np.int32)
            cv2.fillPoly(picture, [polygon], random_color(rng).tolist(), cv2.LINE_AA)
        else:
            skin_like = (np.array([0.8, 0.6, 0.45]) * rng.uniform(0.3, 1.1)).clip(0, 1)
            color = skin_like if rng.random() < 0.4 else random_color(rng)
            end = _point(rng.random(2) * extent)
            cv2.line(picture, start, end, color.tolist(), int(rng.integers(2, 16)), cv2.LINE_AA)
    return picture


def _point(values: np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def random_occluder(rng: np.random.Generator, size: tuple[int, int], box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Something in front of a person.

    Args:
        size: (w, h) of the image, px.
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
        reach = 2 * np.array([np.cos(angle), np.sin(angle)]) * max(size)
        thickness = max(2, int(rng.uniform(0.03, 0.12) * extent.max()))
        cv2.line(mask, _point(center - reach), _point(center + reach), 1.0, thickness, cv2.LINE_AA)
    elif kind == 1:  # a table, a wall, a car: everything below a line
        top = int(box[1] + extent[1] * rng.uniform(0.55, 0.9))
        mask[max(top, 0) :] = 1.0
    elif kind == 2:
        half = (rng.uniform(0.08, 0.25, 2) * extent.max()).astype(int) + 1
        cv2.ellipse(mask, _point(center), _point(half), 180 * rng.random(), 0, 360, 1.0, -1, cv2.LINE_AA)
    else:
        corners = center + rng.uniform(-0.3, 0.3, (rng.integers(3, 7), 2)) * extent.max()
        cv2.fillConvexPoly(mask, cv2.convexHull(corners.astype(np.int32)), 1.0, cv2.LINE_AA)
    return mask, _texture(rng, size)


def random_lights(rng: np.random.Generator) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
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


def _towards_lamp(rng: np.random.Generator) -> np.ndarray:
    """A unit vector to a lamp: mostly above, from anywhere but straight behind the person."""
    direction = rng.standard_normal(3) * (1, 0.7, 0.8) + (0, -0.6, -0.5)
    return direction / np.linalg.norm(direction)


def _tint(rng: np.random.Generator, spread: float) -> np.ndarray:
    return np.clip(1 + spread * rng.standard_normal(3), 0.6, 1.4)


def lit_share(vertices: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """How far vertices (V,) see a distant lamp in `direction` (3,) unit: 1 if lit, 0 behind others, edges between.

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


def photograph(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Camera effects: exposure, colour cast, blur, coarse sampling, noise. (h, w, 3) in [0, 1] -> uint8."""
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
        picture = cv2.resize(small, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        picture = picture + rng.uniform(0.005, 0.05) * rng.standard_normal(picture.shape, np.float32)
    return (picture * 255 + 0.5).clip(0, 255).astype(np.uint8)


def _motion_kernel(rng: np.random.Generator) -> np.ndarray:
    size = int(rng.choice((3, 5, 7)))
    kernel = np.zeros((size, size), np.float32)
    angle = np.pi * rng.random()
    half = np.array([np.cos(angle), np.sin(angle)]) * (size - 1) / 2
    middle = (size - 1) / 2
    cv2.line(kernel, _point(np.round(middle - half)), _point(np.round(middle + half)), 1.0, 1)
    return kernel / kernel.sum()
