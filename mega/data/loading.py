"""Batches of an epoch, on any number of processes and from any batch on; augmentation of training crops.

Every random choice in the data is a function of (seed, epoch, item), and the order of the items of (seed, epoch). So
training sees the same batches with any number of processes and workers, and after a resume.
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
    """The batches of one epoch for one process.

    The shuffled items are cut into global batches of W*B items, of which process r takes B items from r*B on: W
    processes with B items each train on what a single process with W*B items would. Items that do not fill a global
    batch are left out.

    Args:
        n_rows: items of the data set.
        batch_size: B.
        seed, epoch: determine the order.
        rank, world_size: r and W.
        first: the batch to start with, to resume within an epoch; batches of earlier epochs may be counted too. The
            length stays that of the whole epoch, which is what Lightning counts.
        shuffle: False keeps the order of the data set.
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
        self.first = first % n_batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches[self.first :].tolist())


def training_loader(
    dataset: Dataset, batch_size: int, trainer: L.Trainer, seed: int, shuffle: bool = True, **options
) -> DataLoader:
    """The trainer's current epoch, from the first batch that it has not trained on yet.

    It has to be made anew for every epoch (`reload_dataloaders_every_n_epochs=1`).

    Args:
        batch_size: items per batch and process.
        seed, shuffle: see `TrainingBatches`.
        options: passed to the DataLoader.
    """
    loop = trainer.fit_loop
    first = loop.epoch_loop.batch_progress.current.completed if loop.restarting else 0
    epoch, rank, world_size = trainer.current_epoch, trainer.global_rank, trainer.world_size
    batches = TrainingBatches(len(dataset), batch_size, seed, epoch, rank, world_size, first, shuffle)
    return DataLoader(dataset, batch_sampler=batches, **options)


def evaluation_loader(dataset: Dataset, batch_size: int, trainer: L.Trainer | None, **options) -> DataLoader:
    """Every item exactly once over all processes: process r of W takes items r, r + W, …

    Raises ValueError if there are fewer items than processes.
    """
    rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
    if len(dataset) < world_size:
        raise ValueError(f"{len(dataset)} row(s) to evaluate cannot be shared out among {world_size} processes")
    return DataLoader(dataset, batch_size, sampler=range(rank, len(dataset), world_size), **options)


class EpochData(L.LightningDataModule):
    """Base of the data modules: a training set for each epoch, and fixed sets for validation and test.

    Args:
        batch_size: items per training step and process.
        eval_batch_size: the same in validation and test; None for `batch_size`.
        seed: determines the order of the training items.
        shuffle: False keeps the order of the training set.
        options: passed to every DataLoader.
    """

    def __init__(
        self, batch_size: int, seed: int = 0, eval_batch_size: int | None = None, shuffle: bool = True, **options
    ):
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.seed, self.shuffle, self.options = seed, shuffle, options

    def train_dataset(self) -> Dataset:
        """The items of the trainer's current epoch."""
        raise NotImplementedError

    def fixed_dataset(self, split: str) -> Dataset | None:
        """The items of "val" or "test"; None if there are none."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        data = self.train_dataset()
        return training_loader(data, self.batch_size, self.trainer, self.seed, self.shuffle, **self.options)

    def val_dataloader(self) -> DataLoader | list:
        return self._fixed_loader("val")

    def test_dataloader(self) -> DataLoader | list:
        return self._fixed_loader("test")

    def _fixed_loader(self, split: str) -> DataLoader | list:
        data = self.fixed_dataset(split)
        return [] if data is None else evaluation_loader(data, self.eval_batch_size, self.trainer, **self.options)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training crops; none by default."""

    scale: float = 0.0  # the box is enlarged or shrunk by up to this fraction
    shift: float = 0.0  # the box is moved by up to this fraction of its side, along both axes
    degrees: float = 0.0  # standard deviation of the in-plane rotation, clipped at twice that
    turn_probability: float = 0.6  # of any rotation
    # Functions of a crop (3, H, W) uint8, applied in order, that return one of the same type and size and draw from
    # torch's random numbers, such as the transforms of torchvision.transforms.v2.
    look: Sequence[Callable[[Tensor], Tensor]] = ()

    def draw_square(self, square: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A random square (4,) px near the given one."""
        center, side = (square[:2] + square[2:]) / 2, square[2] - square[0]
        center = center + side * self.shift * rng.uniform(-1, 1, 2)
        half = side / 2 * self.draw_scale(rng)
        return np.concatenate([center - half, center + half])

    def draw_scale(self, rng: np.random.Generator) -> float:
        """A random factor for the side of a box."""
        return 1 + self.scale * rng.uniform(-1, 1)

    def draw_degrees(self, rng: np.random.Generator) -> float:
        """A random in-plane rotation."""
        if self.degrees == 0 or rng.random() >= self.turn_probability:
            return 0.0
        return self.degrees * float(np.clip(rng.normal(), -2, 2))

    def draw_look(self, crop: Tensor, rng: np.random.Generator) -> Tensor:
        """The crop (3, H, W) uint8 after the transforms of `look`.

        They draw from torch's global generator, which is seeded from `rng` and gets its own state back afterwards.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed would seed GPUs too
            for change in self.look:
                crop = change(crop)
        return crop
