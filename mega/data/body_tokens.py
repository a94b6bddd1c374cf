"""Tokens of random bodies for the pre-training."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from mega.bodies import BodyModel
from mega.data.body_meshes import BodyChunks
from mega.data.loading import evaluation_loader, training_loader
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

    def prepare_data(self) -> None:
        """The tokens into the cache, by one process for all."""
        for split in ("train", "val") if self.trainer.training else ("test",):
            self._dataset(split)

    def train_dataloader(self) -> DataLoader:
        return training_loader(self._dataset("train"), self.batch_size, self.trainer, self.seed, collate_fn=_collate)

    def val_dataloader(self) -> DataLoader:
        return evaluation_loader(self._dataset("val"), self.batch_size, self.trainer, collate_fn=_collate)

    def test_dataloader(self) -> DataLoader:
        return evaluation_loader(self._dataset("test"), self.batch_size, self.trainer, collate_fn=_collate)

    def _dataset(self, split: str) -> TensorDataset:
        chunks = BodyChunks(self.body, self.n_bodies[split], _CHUNK, self.seed, split)
        key = f"{self.body.name}, {split}, {self.n_bodies[split]} by {_CHUNK}, seed {self.seed}"
        cached = cached_tokens(self.cache / f"bodies_{split}.npz", self.tokenizer, self.body, chunks, key)
        return TensorDataset(torch.from_numpy(cached["tokens"]).long())


def _collate(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"tokens": torch.stack([tokens for (tokens,) in rows])}
