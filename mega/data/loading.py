"""Which rows make which batch: on any number of processes, and from the middle of an epoch on.

Every random choice in the data is a function of (seed, epoch, row), and the order of the rows of (seed, epoch). So what
a training sees depends neither on the number of processes or workers nor on where it was interrupted.

Changes to a training crop: where it is cut, how it is turned, and how it looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class TrainingBatches(Sampler[list[int]]):
    """One process's batches of an epoch.

    The epoch's rows, in their order, are cut into global batches of W*B rows, of which process r takes B rows from r*B
    on: W processes with B rows each see what a single one with W*B rows would. Rows that fill no global batch are left
    out.

    Args:
        n_rows: of the data set.
        batch_size: B.
        seed, epoch: of the order.
        rank, world_size: r and W.
        first: the first batch that is still to be given, where a training is continued within an epoch. The length
            stays that of the whole epoch: this is what Lightning counts.
        shuffle: False takes the rows as they are.
    """

    def __init__(
        self,
        n_rows: int,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        first: int = 0,
        shuffle: bool = True,
    ):
        generator = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(n_rows, generator=generator) if shuffle else torch.arange(n_rows)
        n_batches = n_rows // (batch_size * world_size)
        if n_batches == 0:
            raise ValueError(
                f"the {n_rows} training rows do not fill one batch of {batch_size} on {world_size} process(es): "
                "choose a smaller data.batch_size, or more data"
            )
        used = order[: n_batches * world_size * batch_size]
        self.batches = used.view(n_batches, world_size, batch_size)[:, rank]  # (n_batches, B)
        self.first = first

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches[self.first :].tolist())


def training_loader(
    dataset: Dataset, batch_size: int, trainer: L.Trainer, seed: int, shuffle: bool = True, **options
) -> DataLoader:
    """The batches of the trainer's current epoch, from the one on that it has not trained yet.

    To be asked for anew every epoch (`reload_dataloaders_every_n_epochs=1`).

    Args:
        batch_size: rows a batch and process.
        seed, shuffle: of the order.
        options: of the DataLoader.
    """
    loop = trainer.fit_loop
    first = loop.epoch_loop.batch_progress.current.completed if loop.restarting else 0
    batches = TrainingBatches(
        len(dataset),
        batch_size,
        seed,
        trainer.current_epoch,
        trainer.global_rank,
        trainer.world_size,
        first % max(1, len(dataset) // (batch_size * trainer.world_size)),
        shuffle,
    )
    return DataLoader(dataset, batch_sampler=batches, **options)


def evaluation_loader(dataset: Dataset, batch_size: int, trainer: L.Trainer | None, **options) -> DataLoader:
    """Every row exactly once, over all processes together: process r of W takes rows r, r + W, …

    Raises ValueError if there are fewer rows than processes.
    """
    rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
    if len(dataset) < world_size:
        raise ValueError(f"{len(dataset)} row(s) to evaluate cannot be shared out among {world_size} processes")
    return DataLoader(dataset, batch_size, sampler=range(rank, len(dataset), world_size), **options)


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
