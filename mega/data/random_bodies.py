"""Tokens of many meshes, computed once and kept on disk: training then never touches the body or the tokenizer.

Endless random bodies for the tokenizer: a dataset of parameters, and meshes made of them in batch by one body.

Tokens of random bodies for the pre-training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tqdm import tqdm

from mega.bodies import BodyModel
from mega.bodies.pose_sampler import PoseSampler
from mega.data.loading import evaluation_loader, training_loader
from mega_common.atomic_io import whole_file
from mesh_vq_vae import MeshVQVAE


def cached_tokens(
    path: str | Path,
    tokenizer: MeshVQVAE,
    body: BodyModel,
    batches: Iterable[dict],
    key: str,
    points: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Tokens of the bodies in `batches`, from the file at `path` where it was made from the same.

    Args:
        batches: {"pose": (B, J, 3), "shape": (B, S)} each, and "gender": B names, if the body takes them.
        key: names the bodies; with the tokenizer's weights and `points` it tells whether the file still holds.
        points: (S,) vertices to keep besides the tokens.

    Returns: {"tokens": (P, N) int16, "points": (P, S, 3) float16, metres}; points only if asked for.
    """
    path = Path(path)
    key = f"{key} | {_fingerprint(tokenizer, points)}"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            if file["key"].item() == key:
                return {name: file[name] for name in file.files if name != "key"}
    columns: dict[str, list[np.ndarray]] = {"tokens": []} | ({} if points is None else {"points": []})
    device = next(tokenizer.parameters()).device
    body = body.to(device)
    with torch.no_grad():
        for batch in tqdm(batches, desc=f"tokens for {path.name}", unit="batch"):
            gender = {"gender": batch["gender"]} if "gender" in batch else {}
            vertices = body(batch["pose"].to(device), batch["shape"].to(device), **gender)
            columns["tokens"].append(tokenizer.encode(vertices).to(torch.int16).cpu().numpy())
            if points is not None:
                columns["points"].append(vertices[:, points].half().cpu().numpy())
    result = {name: np.concatenate(parts) for name, parts in columns.items()}
    with whole_file(path) as file:
        np.savez(file, key=np.array(key), **result)
    return result


def _fingerprint(tokenizer: MeshVQVAE, points: Tensor | None) -> str:
    digest = hashlib.sha256()
    for value in tokenizer.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    if points is not None:
        digest.update(points.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


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


_CHUNK_body_tokens = 64  # bodies made at a time


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
        chunks = BodyChunks(self.body, self.n_bodies[split], _CHUNK_body_tokens, self.seed, split)
        key = f"{self.body.name}, {split}, {self.n_bodies[split]} by {_CHUNK_body_tokens}, seed {self.seed}"
        cached = cached_tokens(self.cache / f"bodies_{split}.npz", self.tokenizer, self.body, chunks, key)
        return TensorDataset(torch.from_numpy(cached["tokens"]).long())


def _collate(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"tokens": torch.stack([tokens for (tokens,) in rows])}
