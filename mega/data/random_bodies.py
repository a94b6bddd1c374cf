"""Random bodies: meshes for the tokenizer, tokens for the pre-training; and the cache for tokens of any bodies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mega.bodies import BodyModel
from mega.bodies.pose_sampler import PoseSampler
from mega.data.loading import EpochData
from mega_common.files import read_arrays, whole_file
from mesh_vq_vae import MeshVQVAE

_SPLITS = {"train": 0, "val": 1, "test": 2}  # part of the seed, so that splits never share random numbers
_FIXED_CHUNK = 32  # bodies of validation and test drawn at a time
_TOKEN_CHUNK = 64  # bodies turned into tokens at a time


def cached_tokens(
    path: str | Path,
    tokenizer: MeshVQVAE,
    body: BodyModel,
    batches: Iterable[dict],
    key: str,
    points: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Tokens of the bodies in `batches`: read from `path` if that file was made from the same, else computed.

    Args:
        batches: each {"pose": (B, J, 3), "shape": (B, S)}, with "gender" for bodies that take it.
        key: identifies the bodies; together with the tokenizer's weights and `points` it decides whether the file is
            still valid.
        points: (S,) indices of vertices to store with the tokens.

    Returns: {"tokens": (P, N) int16, "points": (P, S, 3) float16, metres}; points only if asked for.
    """
    path, digest = Path(path), hashlib.sha256()
    for value in (*tokenizer.state_dict().values(), *(() if points is None else (points,))):
        digest.update(value.detach().cpu().numpy().tobytes())
    key = f"{key} | {digest.hexdigest()[:16]}"
    if path.is_file() and (cached := read_arrays(path)).pop("key").item() == key:
        return cached
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


class BodyChunks(Dataset):
    """Chunks {"pose": (C, J, 3), "shape": (C, S)} of random bodies; each is a function of (seed, split, epoch, index).

    Drawing several bodies at once takes a fifth of the time. The last chunk may hold fewer.

    Args:
        n_bodies: in all chunks together.
        chunk: C.
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
        return {"pose": self.sampler.sample(n, generator), "shape": self.body.sample_shapes(n, generator)}


def join_chunks(chunks: list[dict]) -> dict:
    """Several chunks as one batch."""
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


class BodyMeshData(EpochData):
    """Batches with "vertices" (B, V, 3), canonical, made from random poses and shapes on the training device.

    Args:
        body: the body model; it stays in the main process.
        batch_size: meshes per step and process.
        chunk: bodies drawn at a time (reduced to a divisor of the batch size); it changes which bodies are drawn.
        batches_per_epoch: the data never end, so this is the interval between validations.
        val_meshes, test_meshes: sizes of the fixed splits, whose bodies are never trained on.
        workers: processes that draw poses.
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
        self.chunk = math.gcd(batch_size, chunk)
        options = {"shuffle": False, "collate_fn": join_chunks, "num_workers": workers}
        super().__init__(batch_size // self.chunk, seed, eval_batch_size=1, **options)
        self.body, self.batches_per_epoch, self.bodies_per_batch = body, batches_per_epoch, batch_size
        self.n_meshes = {"val": val_meshes, "test": test_meshes}

    def train_dataset(self) -> BodyChunks:
        n_bodies = self.batches_per_epoch * self.bodies_per_batch * self.trainer.world_size
        return BodyChunks(self.body, n_bodies, self.chunk, self.seed, "train", self.trainer.current_epoch)

    def fixed_dataset(self, split: str) -> BodyChunks:
        n = self.n_meshes[split]
        return BodyChunks(self.body, n, min(_FIXED_CHUNK, n), self.seed, split)

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        body = self.body.to(batch["pose"].device)
        return batch | {"vertices": body(batch["pose"], batch["shape"])}


class BodyTokenData(EpochData):
    """Batches {"tokens": (B, N)} of random bodies, in disjoint splits.

    Args:
        body, tokenizer: make the tokens, once.
        cache: folder for the tokens.
        batch_size: bodies per step and process.
        train_bodies, val_bodies, test_bodies: sizes of the splits.
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
        super().__init__(batch_size, seed)
        self.body, self.tokenizer, self.cache = body, tokenizer, Path(cache)
        self.n_bodies = {"train": train_bodies, "val": val_bodies, "test": test_bodies}

    def prepare_data(self) -> None:
        """Compute the tokens once, in one process."""
        for split in ("train", "val") if self.trainer.training else ("test",):
            self.fixed_dataset(split)

    def train_dataset(self) -> TokenDataset:
        return self.fixed_dataset("train")

    def fixed_dataset(self, split: str) -> TokenDataset:
        n = self.n_bodies[split]
        chunks = BodyChunks(self.body, n, _TOKEN_CHUNK, self.seed, split)
        key = f"{self.body.name}, {split}, {n} by {_TOKEN_CHUNK}, seed {self.seed}"
        cached = cached_tokens(self.cache / f"bodies_{split}.npz", self.tokenizer, self.body, chunks, key)
        return TokenDataset(cached["tokens"])


class TokenDataset(Dataset):
    """Items {"tokens": (N,) int64} of tokens (P, N) int16."""

    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": torch.from_numpy(self.tokens[index]).long()}
