"""Endless random bodies for the tokenizer: a dataset of parameters, and meshes made of them in batch by one body."""

from __future__ import annotations

import math

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mega.bodies import BodyModel
from mega.bodies.poses import PoseSampler
from mega.data.loading import evaluation_loader, training_loader

# Seeds of the splits never meet: (seed, split, epoch, chunk) is one stream of random numbers each.
_SPLITS = {"train": 0, "val": 1, "test": 2}
_CHUNK = 32  # bodies of the fixed splits drawn at a time


class BodyChunks(Dataset):
    """Chunks {"pose": (C, J, 3), "shape": (C, S)} of random bodies; one is a function of (seed, split, epoch, index).

    Bodies are drawn several at a time, which takes a fifth of the time of one by one. The last chunk of a data set may
    hold fewer.

    Args:
        body: the body model.
        n_bodies: of all chunks together.
        chunk: C, bodies a chunk.
        seed, split, epoch: of the draw.
    """

    def __init__(self, body: BodyModel, n_bodies: int, chunk: int, seed: int, split: str, epoch: int = 0):
        self.body, self.sampler = body, PoseSampler(body)
        self.n_bodies, self.chunk = n_bodies, chunk
        self.key = (seed, _SPLITS[split], epoch)

    def __len__(self) -> int:
        return -(-self.n_bodies // self.chunk)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        n = min(self.chunk, self.n_bodies - index * self.chunk)
        seed = np.random.SeedSequence([*self.key, index]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> 1))
        return {
            "pose": self.sampler.sample(n, generator),
            "shape": self.body.sample_shapes(n, generator),
        }


def join_chunks(chunks: list[dict]) -> dict:
    """Several chunks as one batch."""
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


class BodyMeshData(L.LightningDataModule):
    """Batches with "vertices" (B, V, 3), canonical, made from random poses and shapes on the training device.

    Args:
        body: the body model; it stays in the main process.
        batch_size: meshes a step and process.
        chunk: bodies drawn at a time, or the greatest common divisor with the batch size; other chunks, other bodies.
        batches_per_epoch: an epoch is what lies between two validations, since the data never end.
        val_meshes, test_meshes: sizes of the fixed splits, whose bodies are never trained on.
        workers: processes that draw poses.
        seed: of everything random here.
    """

    def __init__(
        self,
        body: BodyModel,
        batch_size: int = 16,
        chunk: int = 16,
        batches_per_epoch: int = 500,
        val_meshes: int = 512,
        test_meshes: int = 2048,
        workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        self.body, self.batch_size, self.chunk, self.seed = body, batch_size, math.gcd(batch_size, chunk), seed
        self.batches_per_epoch, self.workers = batches_per_epoch, workers
        self.n_meshes = {"val": val_meshes, "test": test_meshes}

    def train_dataloader(self) -> DataLoader:
        n_bodies = self.batches_per_epoch * self.batch_size * self.trainer.world_size
        chunks = BodyChunks(self.body, n_bodies, self.chunk, self.seed, "train", self.trainer.current_epoch)
        options = {"shuffle": False, "num_workers": self.workers, "collate_fn": join_chunks}
        return training_loader(chunks, self.batch_size // self.chunk, self.trainer, self.seed, **options)

    def val_dataloader(self) -> DataLoader:
        return self._fixed("val")

    def test_dataloader(self) -> DataLoader:
        return self._fixed("test")

    def _fixed(self, split: str) -> DataLoader:
        chunks = BodyChunks(self.body, self.n_meshes[split], min(_CHUNK, self.n_meshes[split]), self.seed, split)
        return evaluation_loader(chunks, 1, self.trainer, collate_fn=join_chunks)

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        body = self.body.to(batch["pose"].device)
        return batch | {"vertices": body(batch["pose"], batch["shape"])}
