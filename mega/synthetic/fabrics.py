"""Colours and patterns of cloth as solid textures, and the photographs without people that scikit-image ships.

A `Fabric` maps points (n, 3) of the rest pose, metres, to colours (n, 3), sRGB in [0, 1]: it has no seams and any
resolution.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from omegaconf import OmegaConf

COLORS = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("colors.yaml")))
_NEUTRAL_COLORS = np.array(COLORS["clothes"], np.float32)

_PHOTOGRAPHS = (
    *("brick.png", "grass.png", "gravel.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg"),
    *("coins.png", "motorcycle_left.png"),
)
_LONGER_SIDE = 400  # px; enough for a background of 224
_NOISE_SIDE = 64

Fabric = Callable[[np.ndarray], np.ndarray]


@cache
def _load_photographs() -> list[np.ndarray]:
    photographs = []
    for name in _PHOTOGRAPHS:
        path = Path(skimage.data.__file__).with_name(name)
        if not path.is_file():
            raise FileNotFoundError(f"scikit-image's photograph {path} is missing: reinstall scikit-image")
        photo = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
        scale = _LONGER_SIDE / max(photo.shape)
        photographs.append(cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return photographs


def random_photograph(rng: np.random.Generator) -> np.ndarray:
    """A photograph without people, (h, w, 3) uint8 RGB; some are grey."""
    photographs = _load_photographs()
    return photographs[rng.integers(len(photographs))]


def random_color(rng: np.random.Generator, neutral: float = 0.45) -> np.ndarray:
    """A colour (3,) of clothes; `neutral` is the probability of an almost colourless one."""
    if rng.random() < neutral:
        color = _NEUTRAL_COLORS[rng.integers(len(_NEUTRAL_COLORS))]
    else:
        hue, saturation, value = 360 * rng.random(), rng.uniform(0.25, 0.95), rng.uniform(0.2, 0.95)
        color = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.float32), cv2.COLOR_HSV2RGB)[0, 0]
    return np.clip(color + rng.normal(0, 0.03, 3), 0.02, 0.98).astype(np.float32)


def solid_noise(points: np.ndarray, wavelength: float) -> np.ndarray:
    """Smooth noise (n,), about N(0, 1), at points (n, 3); features are about `wavelength` metres wide."""
    index = (points * (8 / wavelength)).astype(np.int32) % _NOISE_SIDE
    return _noise_volume()[index[:, 0], index[:, 1], index[:, 2]]


@cache
def _noise_volume() -> np.ndarray:
    """A cube of noise that tiles space, features about 8 cells wide."""
    spectrum = np.fft.rfftn(np.random.default_rng(0).standard_normal((_NOISE_SIDE,) * 3))
    k = [np.fft.fftfreq(_NOISE_SIDE), np.fft.fftfreq(_NOISE_SIDE), np.fft.rfftfreq(_NOISE_SIDE)]
    squared = sum(axis**2 for axis in np.meshgrid(*k, indexing="ij"))
    volume = np.fft.irfftn(spectrum * np.exp(-64 * squared), s=(_NOISE_SIDE,) * 3)
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)


def random_fabric(rng: np.random.Generator) -> Fabric:
    """Plain in about half of the cases, or with stripes, checks, dots, camouflage, a photograph or a print."""
    base, second = random_color(rng), random_color(rng)
    makers = (_plain, _stripes, _checks, _dots, _blotches, _photograph, _print)
    maker = rng.choice(len(makers), p=(0.46, 0.14, 0.09, 0.06, 0.08, 0.08, 0.09))
    return makers[maker](rng, base, second)


def _plain(rng, base, second) -> Fabric:
    return lambda points: np.broadcast_to(base, points.shape)


def _stripes(rng, base, second) -> Fabric:
    period, share = rng.uniform(0.02, 0.16), rng.uniform(0.25, 0.6)
    axis = 1 if rng.random() < 0.7 else 0  # across the body or along it
    phase = rng.random()
    return lambda points: np.where((points[:, [axis]] / period + phase) % 1 < share, second, base)


def _checks(rng, base, second) -> Fabric:
    period, share = rng.uniform(0.03, 0.14), rng.uniform(0.3, 0.55)

    def fabric(points):
        bands = ((points / period) % 1 < share)[:, :2].mean(axis=1, keepdims=True)  # 0, 1/2 or 1
        return base + bands.astype(np.float32) * (second - base)

    return fabric


def _dots(rng, base, second) -> Fabric:
    period, radius = rng.uniform(0.03, 0.10), rng.uniform(0.22, 0.36)

    def fabric(points):
        squared = (((points / period) % 1 - 0.5) ** 2).sum(axis=1, keepdims=True)
        return np.where(squared < radius**2, second, base)

    return fabric


def _blotches(rng, base, second) -> Fabric:
    wavelength, third = rng.uniform(0.06, 0.35), random_color(rng)
    offset = rng.uniform(0, 10, 3)

    def fabric(points):
        noise = solid_noise(points + offset, wavelength)[:, None]
        return np.where(noise > 0.9, third, np.where(noise > 0, second, base))

    return fabric


def _photograph(rng, base, second) -> Fabric:
    """A photograph seen as cloth: brickwork, grass, coffee … at a random scale, laid on from the front."""
    photo = random_photograph(rng)
    scale = rng.uniform(200, 700)  # px per metre
    tint = 0.5 + base

    def fabric(points):
        column, row = (np.abs(points[:, k] * scale).astype(np.int32) % photo.shape[1 - k] for k in (0, 1))
        return np.minimum(photo[row, column].astype(np.float32) / 255 * tint, 1)

    return fabric


def _print(rng, base, second) -> Fabric:
    """A motif on the chest or the back, on plain cloth."""
    center, size = np.array([rng.uniform(-0.05, 0.05), rng.uniform(0.15, 0.30)]), rng.uniform(0.07, 0.16)
    motif = cv2.resize(rng.random((6, 6), np.float32), (48, 48), interpolation=cv2.INTER_CUBIC) > 0.5
    if rng.random() < 0.4:  # lines of writing
        motif &= (np.arange(48) // 6 % 2 == 0)[:, None]
    on_back = rng.random() < 0.3

    def fabric(points):
        place = (points[:, :2] - center) / size * 24 + 24
        inside = ((place >= 0) & (place < 48)).all(axis=1) & ((points[:, 2] < 0) == on_back)
        column, row = place.astype(np.int32).clip(0, 47).T
        return np.where((inside & motif[row, column])[:, None], second, base)

    return fabric
