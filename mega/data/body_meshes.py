"""Endless random bodies for the tokenizer: a dataset of parameters, and meshes made of them in batch by one body."""

from __future__ import annotations

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mega.bodies import BodyModel
from mega.bodies.poses import PoseSampler

# Seeds of the splits never meet: (seed, split, epoch, batch) is one stream of random numbers each.
_SPLITS = {"train": 0, "val": 1, "test": 2}


class BodyBatches(Dataset):
    """Batches {"pose": (B, J, 3), "shape": (B, S)}; batch i is a function of (seed, split, epoch, i) alone."""

    def __init__(self, body: BodyModel, batch_size: int, n_batches: int, seed: int, split: str, epoch: int = 0):
        self.body, self.sampler = body, PoseSampler(body)
        self.batch_size, self.n_batches = batch_size, n_batches
        self.key = (seed, _SPLITS[split], epoch)

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.n_batches:
            raise IndexError(index)
        seed = np.random.SeedSequence([*self.key, index]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> 1))
        return {
            "pose": self.sampler.sample(self.batch_size, generator),
            "shape": self.body.sample_shapes(self.batch_size, generator),
        }


class BodyMeshData(L.LightningDataModule):
    """Batches with "vertices" (B, V, 3), canonical, made from random poses and shapes on the training device.

    Args:
        body: the body model; it stays in the main process.
        batch_size: meshes a step.
        batches_per_epoch: an epoch is what lies between two validations, since the data never end.
        val_meshes, test_meshes: sizes of the fixed splits, whose bodies are never trained on.
        seed: of everything random here.
    """

    def __init__(
        self,
        body: BodyModel,
        batch_size: int = 16,
        batches_per_epoch: int = 500,
        val_meshes: int = 512,
        test_meshes: int = 2048,
        seed: int = 0,
    ):
        super().__init__()
        self.body, self.batch_size, self.batches_per_epoch, self.seed = body, batch_size, batches_per_epoch, seed
        self.n_meshes = {"val": val_meshes, "test": test_meshes}

    def train_dataloader(self) -> DataLoader:
        # Asked for anew every epoch (reload_dataloaders_every_n_epochs=1).
        epoch = self.trainer.current_epoch
        return self._loader(BodyBatches(self.body, self.batch_size, self.batches_per_epoch, self.seed, "train", epoch))

    def val_dataloader(self) -> DataLoader:
        return self._fixed("val")

    def test_dataloader(self) -> DataLoader:
        return self._fixed("test")

    def _fixed(self, split: str) -> DataLoader:
        batch_size = min(32, self.n_meshes[split])
        return self._loader(BodyBatches(self.body, batch_size, self.n_meshes[split] // batch_size, self.seed, split))

    @staticmethod
    def _loader(dataset: BodyBatches) -> DataLoader:
        return DataLoader(dataset, batch_size=None)

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        body = self.body.to(batch["pose"].device)
        return batch | {"vertices": body(batch["pose"], batch["shape"])}
