"""Which rows make which batch: on any number of processes, and from the middle of an epoch on.

Every random choice in the data is a function of (seed, epoch, row), and the order of the rows of (seed, epoch). So what
a training sees depends neither on the number of processes or workers nor on where it was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import torch
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
