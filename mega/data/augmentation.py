"""Changes to a training crop: where it is cut, how it is turned, and how it looks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How far a crop may be changed; by default not at all.

    Attributes:
        scale: the box is enlarged or shrunk by up to this share.
        shift: the box is moved by up to this share of its side, along either axis.
        degrees: standard deviation of the turn in the picture plane; cut at twice that.
        turn_probability: how often it is turned at all.
        look: one after another, functions of a crop (3, H, W) uint8 that give another one of the same kind and size and
            draw from torch's random numbers, such as the transforms of torchvision.transforms.v2.
    """

    scale: float = 0.0
    shift: float = 0.0
    degrees: float = 0.0
    turn_probability: float = 0.6
    look: Sequence[Callable[[Tensor], Tensor]] = ()

    def draw_square(self, square: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A square (4,) px near the given one."""
        center, side = (square[:2] + square[2:]) / 2, square[2] - square[0]
        center = center + side * self.shift * rng.uniform(-1, 1, 2)
        half = side / 2 * self.draw_scale(rng)
        return np.concatenate([center - half, center + half])

    def draw_scale(self, rng: np.random.Generator) -> float:
        """What the side of a box is multiplied by."""
        return 1 + self.scale * rng.uniform(-1, 1)

    def draw_degrees(self, rng: np.random.Generator) -> float:
        """A turn in the picture plane."""
        if self.degrees == 0 or rng.random() >= self.turn_probability:
            return 0.0
        return self.degrees * float(np.clip(rng.normal(), -2, 2))

    def draw_look(self, crop: Tensor, rng: np.random.Generator) -> Tensor:
        """The crop (3, H, W) uint8 with other colours, less detail and something in front of it.

        The transforms draw from torch's global generator: it gets a state that `rng` says, and its own back afterwards.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed would seed GPUs too
            for change in self.look:
                crop = change(crop)
        return crop
