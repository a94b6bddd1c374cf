"""Changes to a training crop: where it is cut, how it is turned, its colours, what hides a part of it."""

from dataclasses import dataclass

import cv2
import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Augmentation:
    """How far a crop may be changed; zero everywhere is not at all.

    Attributes:
        scale: the box is enlarged or shrunk by up to this share.
        shift: the box is moved by up to this share of its side, along either axis.
        degrees: standard deviation of the turn in the picture plane; cut at twice that.
        turn_probability: how often it is turned at all.
        color: strength of the changes in brightness, contrast, saturation and tint.
        occlusion: probability that a rectangle of one colour or of noise hides a part.
        low_resolution: probability that detail is lost, as in a small or blurred picture.
    """

    scale: float = 0.0
    shift: float = 0.0
    degrees: float = 0.0
    turn_probability: float = 0.6
    color: float = 0.0
    occlusion: float = 0.0
    low_resolution: float = 0.0

    def draw_square(self, square: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A square (4,) px near the given one."""
        center, side = (square[:2] + square[2:]) / 2, square[2] - square[0]
        center = center + side * self.shift * rng.uniform(-1, 1, 2)
        half = side / 2 * (1 + self.scale * rng.uniform(-1, 1))
        return np.concatenate([center - half, center + half])

    def draw_degrees(self, rng: np.random.Generator) -> float:
        """A turn in the picture plane."""
        if self.degrees == 0 or rng.random() >= self.turn_probability:
            return 0.0
        return self.degrees * float(np.clip(rng.normal(), -2, 2))

    def draw_look(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The crop (H, W, 3) uint8 with other colours, less detail and something in front of it."""
        if rng.random() < self.low_resolution:
            crop = _lose_detail(crop, rng.uniform(1.3, 3.5))
        if self.color > 0:
            crop = _recolor(crop, self.color, rng)
        if rng.random() < self.occlusion:
            crop = _hide_rectangle(crop, rng)
        return crop


def _recolor(crop: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """One affine map of RGB does contrast, saturation, tint and brightness at once."""
    contrast, saturation = 1 + strength * rng.uniform(-0.8, 0.8, 2)
    tint = 1 + strength * rng.uniform(-0.3, 0.3, 3)
    matrix = contrast * tint[:, None] * (saturation * np.eye(3) + (1 - saturation) * _LUMA)
    offset = 128 * (1 - contrast) + 100 * strength * rng.uniform(-1, 1)
    return cv2.transform(crop, np.column_stack([matrix, np.full(3, offset)]))


def _lose_detail(crop: np.ndarray, factor: float) -> np.ndarray:
    size = crop.shape[1::-1]
    small = [max(1, round(length / factor)) for length in size]
    return cv2.resize(cv2.resize(crop, small, interpolation=cv2.INTER_AREA), size, interpolation=cv2.INTER_LINEAR)


def _hide_rectangle(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = crop.shape[:2]
    h, w = (rng.uniform(0.1, 0.45, 2) * (height, width)).astype(int)
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    crop = crop.copy()
    if rng.random() < 0.5:
        crop[y : y + h, x : x + w] = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    else:
        crop[y : y + h, x : x + w] = rng.integers(0, 256, 3, dtype=np.uint8)
    return crop
