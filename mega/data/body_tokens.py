"""Tokens of random bodies for the pre-training."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from mega.bodies import BodyModel
from mega.data.body_meshes import BodyBatches
from mega.data.token_cache import cached_tokens
from mesh_vq_vae import MeshVQVAE

_CHUNK = 64  # bodies made at a time


class BodyTokenData(L.LightningDataModule):
    """Batches {"tokens": (B, N)}, from splits of random bodies that never meet.

    Args:
        body, tokenizer: make the tokens, once.
        cache: folder for them.
        batch_size: of the batches.
        train_bodies, val_bodies, test_bodies: sizes of the splits.
        seed: of everything random here.
    """

    def __init__(
        self,
        body: BodyModel,
        tokenizer: MeshVQVAE,
        cache: str | Path,
        batch_size: int = 256,
        train_bodies: int = 64_000,
        val_bodies: int = 1024,
        test_bodies: int = 2048,
        seed: int = 0,
    ):
        super().__init__()
        self.body, self.tokenizer, self.cache = body, tokenizer, Path(cache)
        self.batch_size, self.seed = batch_size, seed
        self.n_bodies = {"train": train_bodies, "val": val_bodies, "test": test_bodies}

    def train_dataloader(self) -> DataLoader:
        # Asked for anew every epoch (reload_dataloaders_every_n_epochs=1), so that the order follows from the epoch.
        generator = torch.Generator().manual_seed(self.seed + self.trainer.current_epoch)
        return DataLoader(
            self._dataset("train"),
            self.batch_size,
            shuffle=True,
            generator=generator,
            drop_last=True,
            collate_fn=_collate,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._dataset("val"), self.batch_size, collate_fn=_collate)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self._dataset("test"), self.batch_size, collate_fn=_collate)

    def _dataset(self, split: str) -> TensorDataset:
        chunk = min(_CHUNK, self.n_bodies[split])
        n_chunks = self.n_bodies[split] // chunk
        batches = BodyBatches(self.body, chunk, n_chunks, self.seed, split)
        key = f"{self.body.name}, {split}, {n_chunks} x {chunk}, seed {self.seed}"
        cached = cached_tokens(self.cache / f"bodies_{split}.npz", self.tokenizer, self.body, batches, key)
        return TensorDataset(torch.from_numpy(cached["tokens"]).long())


def _collate(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"tokens": torch.stack([tokens for (tokens,) in rows])}
