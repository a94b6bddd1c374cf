"""Backgrounds: rooms, landscapes, photographs without people, clutter; (h, w, 3) float32 in [0, 1]."""

import cv2
import numpy as np

from mega.synthetic.fabrics import load_photographs, random_color


def random_background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A random kind of background of `size` (w, h), sometimes with clutter, sometimes out of focus."""
    makers = (_gradient, _room, _landscape, _photograph, _texture)
    picture = makers[rng.choice(len(makers), p=(0.08, 0.24, 0.20, 0.30, 0.18))](rng, size)
    if rng.random() < 0.6:
        picture = _add_clutter(rng, picture)
    if rng.random() < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 3.5))
    return picture


def random_texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Texture for a surface of `size` (w, h): noise or part of a photograph."""
    return (_photograph if rng.random() < 0.4 else _texture)(rng, size)


def _gradient(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    corners = np.stack([random_color(rng) for _ in range(4)]).reshape(2, 2, 3)
    return cv2.resize(corners, size, interpolation=cv2.INTER_LINEAR)


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
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
    photographs = load_photographs()
    photo = photographs[rng.integers(len(photographs))]
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
    ground = random_texture(rng, (width, height - floor)) if rng.random() < 0.6 else random_color(rng, neutral=0.8)
    picture[floor:] = ground
    for _ in range(rng.integers(0, 5)):
        w, h = (rng.uniform(0.08, 0.45, 2) * size).astype(int)
        x, y = int(rng.uniform(-0.1, 0.95) * width), int(rng.uniform(0, 1) * max(floor - h, 1))
        if rng.random() < 0.4:  # it stands on the floor
            y = floor - h + int(rng.uniform(0, 0.1) * height)
        cv2.rectangle(picture, (x, y), (x + w, y + h), random_color(rng).tolist(), -1, cv2.LINE_AA)
        cv2.rectangle(picture, (x, y), (x + w, y + h), random_color(rng).tolist(), int(rng.integers(1, 4)), cv2.LINE_AA)
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
    picture[horizon:] = random_texture(rng, (width, height - horizon))
    return picture.clip(0, 1)


def _add_clutter(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Random shapes; some are long and skin-coloured, so that not everything that looks like a limb is one."""
    picture = np.ascontiguousarray(picture, np.float32)
    height, width = picture.shape[:2]
    for _ in range(rng.integers(1, 9)):
        x, y = (rng.random(2) * (width, height)).astype(int).tolist()
        w, h = (rng.uniform(0.03, 0.25, 2) * width).astype(int).tolist()
        kind = rng.integers(3)
        if kind == 0:
            cv2.ellipse(
                picture, (x, y), (w, h), 180 * rng.random(), 0, 360, random_color(rng).tolist(), -1, cv2.LINE_AA
            )
        elif kind == 1:
            polygon = (rng.uniform(-1, 1, (rng.integers(3, 6), 2)) * (w, h) + (x, y)).astype(np.int32)
            cv2.fillPoly(picture, [polygon], random_color(rng).tolist(), cv2.LINE_AA)
        else:
            skin_like = (np.array([0.8, 0.6, 0.45]) * rng.uniform(0.3, 1.1)).clip(0, 1)
            color = skin_like if rng.random() < 0.4 else random_color(rng)
            end = (rng.random(2) * (width, height)).astype(int).tolist()
            cv2.line(picture, (x, y), end, color.tolist(), int(rng.integers(2, 16)), cv2.LINE_AA)
    return picture
