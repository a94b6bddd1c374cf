"""Frames of the user's motions: as canonical meshes for the tokenizer, as tokens for the pre-training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mega.bodies import SMPLHBody
from mega.bodies.smplh import GENDERS
from mega.data.loading import evaluation_loader, training_loader
from mega.data.motion_files import motion_files
from mega.data.motions import MotionDataset, Motions
from mega.data.token_cache import cached_tokens
from mesh_vq_vae import MeshVQVAE

log = logging.getLogger(__name__)

_CHUNK = 64  # frames made into tokens at a time
_SHARD = 1024 * _CHUNK  # frames whose tokens share a file


class MotionData(L.LightningDataModule):
    """What the two data modules share: the motions, their splits, and the frames of each.

    Training takes one frame in `every` of each motion an epoch, and others in the next. Validation and test are fixed:
    frames spread evenly over the motions of their split.

    Args:
        body: poses the frames, with the gender that each file names.
        folder: of the animations (`motion_files`).
        cache: folder for what is computed from them.
        batch_size: frames a step and process.
        every: one frame in so many; at 30 Hz neighbours hardly differ.
        shares: of "val" and "test", of the files; no file is in two splits.
        val_frames, test_frames: no more than so many.
        seed: of the order.

    Raises FileNotFoundError or ValueError if there are no motions in the folder.
    """

    def __init__(
        self,
        body: SMPLHBody,
        folder: str | Path,
        cache: str | Path,
        batch_size: int,
        every: int = 1,
        shares: Mapping[str, float] | None = None,
        val_frames: int = 1024,
        test_frames: int = 8192,
        seed: int = 0,
    ):
        super().__init__()
        motion_files(folder)
        self.body, self.folder, self.cache = body, Path(folder), Path(cache)
        self.batch_size, self.every, self.seed = batch_size, every, seed
        self.shares = {"val": 0.02, "test": 0.02} | dict(shares or {})
        self.n_frames = {"val": val_frames, "test": test_frames}
        self._motions: Motions | None = None

    @property
    def motions(self) -> Motions:
        """Every motion that can be used."""
        if self._motions is None:
            self._motions = Motions.load(self.folder, self.cache / "motions")
        return self._motions

    @property
    def problems(self) -> list[str]:
        """What of the animations could not be used: a line a file, on the first process alone."""
        return self.motions.problems if self.trainer.is_global_zero else []

    def frames(self, split: str, every: int = 1, epoch: int = 0) -> MotionDataset:
        """The frames of a split; for training all of them by default."""
        return MotionDataset(self.motions.split(split, self.shares), every, epoch, self.n_frames.get(split))

    def prepare_data(self) -> None:
        """Read the motions, by one process for all, and tell of files that cannot be used."""
        problems = self.motions.problems
        if problems:
            listed = "\n  ".join(problems)
            log.warning("%d motion file(s) cannot be used and are left out:\n  %s", len(problems), listed)
        for gender in sorted(set(self.motions.gender.tolist())):
            self.body.gender(GENDERS[gender])  # a missing body is told before anything is computed

    def train_dataloader(self) -> DataLoader:
        return training_loader(self.train_dataset(), self.batch_size, self.trainer, self.seed)

    def val_dataloader(self) -> DataLoader:
        return evaluation_loader(self.fixed_dataset("val"), self.batch_size, self.trainer)

    def test_dataloader(self) -> DataLoader:
        return evaluation_loader(self.fixed_dataset("test"), self.batch_size, self.trainer)

    def train_dataset(self) -> Dataset:
        """The items of the trainer's epoch."""
        return self.frames("train", self.every, self.trainer.current_epoch)

    def fixed_dataset(self, split: str) -> Dataset:
        """The items of validation or test."""
        return self.frames(split)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        with torch.no_grad():
            genders = [GENDERS[i] for i in batch["gender"].tolist()]
            return batch | {"vertices": self.body.to(batch["pose"].device)(batch["pose"], batch["betas"], genders)}


class MotionMeshData(MotionData):
    """Batches {"vertices" (B, V, 3) canonical, "pose" (B, 21, 3), "betas" (B, 10), "gender" (B,)}; see `MotionData`.

    Meshes are made on the training device: a frame is 300 bytes to load, its mesh 80 kB.
    """


class MotionTokenData(MotionData):
    """Batches {"tokens": (B, N)}; see `MotionData`.

    Args:
        tokenizer: makes the tokens.
        cache_tokens: compute the tokens of every training frame once, and keep them: two million frames are 0.2 GB, and
            500 epochs look at each of them many times. They are kept in files of 65,536 frames, so that a stopped
            computation is continued. False makes them anew for each batch, which pays for a few steps only.
        options: as for `MotionData`.
    """

    def __init__(self, body: SMPLHBody, tokenizer: MeshVQVAE, cache_tokens: bool = True, **options):
        super().__init__(body, **options)
        self.tokenizer, self.cache_tokens = tokenizer, cache_tokens
        self._tokens: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        """The motions and their tokens into the cache, by one process for all, on its training device."""
        super().prepare_data()
        if self._is_cached:
            self.tokenizer.to(self.trainer.strategy.root_device)
            for split in ("train", "val") if self.trainer.training else ("test",):
                self._cached(split)

    @property
    def _is_cached(self) -> bool:
        # A dry run must not begin with the tokens of every frame.
        return self.cache_tokens and not self.trainer.fast_dev_run

    def train_dataset(self) -> Dataset:
        frames = super().train_dataset()
        return _Tokens(self._cached("train"), frames.place) if self._is_cached else frames

    def fixed_dataset(self, split: str) -> Dataset:
        return _Tokens(self._cached(split)) if self._is_cached else super().fixed_dataset(split)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        if "tokens" in batch:
            return batch
        vertices = super().on_after_batch_transfer(batch, dataloader_idx)["vertices"]
        with torch.no_grad():
            return {"tokens": self.tokenizer.to(vertices.device).encode(vertices)}

    def _cached(self, split: str) -> Tensor:
        """(P, N) int16, of all frames of a split."""
        if split not in self._tokens:
            frames = self.frames(split)
            starts = range(0, len(frames), _SHARD)
            self._tokens[split] = torch.cat([self._shard(split, frames, start) for start in starts])
        return self._tokens[split]

    def _shard(self, split: str, frames: MotionDataset, start: int) -> Tensor:
        rows = range(start, min(start + _SHARD, len(frames)))
        path = self.cache / f"motions_{split}_{start // _SHARD:03}.npz"
        batches = DataLoader(frames, _CHUNK, sampler=rows, collate_fn=_as_bodies)
        key = f"{self.body.name}, {frames.fingerprint(slice(rows.start, rows.stop))}"
        return torch.from_numpy(cached_tokens(path, self.tokenizer, self.body, batches, key)["tokens"])


class _Tokens(Dataset):
    """Items {"tokens": (N,) int64}: the rows (all if left out) of tokens (P, N) int16."""

    def __init__(self, tokens: Tensor, rows=None):
        self.tokens, self.rows = tokens, range(len(tokens)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": self.tokens[self.rows[index]].long()}


def _as_bodies(items: list[dict]) -> dict:
    batch = default_collate(items)
    return {"pose": batch["pose"], "shape": batch["betas"], "gender": [GENDERS[i] for i in batch["gender"].tolist()]}
