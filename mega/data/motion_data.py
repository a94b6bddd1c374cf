"""Data modules of motions and of 3DPW's bodies: canonical meshes for the tokenizer, tokens for the pre-training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mega.bodies import SMPLHBody
from mega.bodies.smplh import GENDERS
from mega.data.loading import EpochData, training_loader
from mega.data.motions import MotionDataset, Motions, motion_files
from mega.data.random_bodies import TokenDataset, cached_tokens
from mesh_vq_vae import MeshVQVAE

log = logging.getLogger(__name__)

_CHUNK = 64  # frames turned into tokens at a time
_SHARD = 1024 * _CHUNK  # frames whose tokens share a file


class PosedMeshData(EpochData):
    """Batches {"pose" (B, 21, 3), "betas" (B, 10), "gender" (B,)} get their "vertices" (B, V, 3), canonical.

    Meshes are made on the training device: a frame takes 300 bytes to load, its mesh 80 kB.

    Args:
        body: poses the frames, each with its own gender.
        batch_size: bodies per step and process.
    """

    def __init__(self, body: SMPLHBody, batch_size: int, seed: int = 0):
        super().__init__(batch_size, seed)
        self.body = body

    def require_genders(self, motions: Motions) -> None:
        """Raise FileNotFoundError for a gender whose body is missing, before anything is computed."""
        for gender in sorted(set(motions.gender.tolist())):
            self.body.gender(GENDERS[gender])

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        with torch.no_grad():
            body = self.body.to(batch["pose"].device)
            return batch | {"vertices": body(batch["pose"], batch["betas"], batch["gender"])}


class AnnotatedMeshData(PosedMeshData):
    """The bodies of an annotation file, to test a tokenizer on.

    Args:
        body, batch_size: see `PosedMeshData`.
        test_annotations: files, of which the first that exists is read.
        test_frames: maximum number of bodies, spread evenly; None takes all.

    Raises FileNotFoundError if none of the files exists.
    """

    def __init__(
        self, body: SMPLHBody, batch_size: int, test_annotations: Sequence[str | Path], test_frames: int | None = None
    ):
        super().__init__(body, batch_size)
        self.path, self.test_frames = _require_annotations(test_annotations), test_frames

    def fixed_dataset(self, split: str) -> MotionDataset:
        motions = Motions.of_annotations(self.path)
        self.require_genders(motions)
        log.info("%s on the bodies of %s", split, self.path)
        return MotionDataset(motions, limit=self.test_frames)


class MotionData(PosedMeshData):
    """Motions, their splits, and the frames of each: the base of `MotionMeshData` and `MotionTokenData`.

    Training takes different frames of each motion every epoch. Validation uses the bodies of an annotation file
    (published: 3DPW) if there is one; else, like the test, frames spread evenly over held-out motions.

    Args:
        body, batch_size: see `PosedMeshData`.
        folder: folder of the animations (`motion_files`).
        cache: folder for the packed motions and for tokens.
        frames_per_file, every: the frames of a training epoch, see `MotionDataset`.
        shares: fractions of the files for "val" and "test"; the splits are disjoint.
        val_annotations: annotation files; the first that exists is used for validation.
        val_frames, test_frames: maximum numbers of frames.
        seed: determines the training frames and their order.

    Raises FileNotFoundError or ValueError if there are no motions in the folder.
    """

    def __init__(
        self,
        body: SMPLHBody,
        folder: str | Path,
        cache: str | Path,
        batch_size: int,
        frames_per_file: int | None = None,
        every: int | None = None,
        shares: Mapping[str, float] | None = None,
        val_annotations: Sequence[str | Path] | None = None,
        val_frames: int = 1024,
        test_frames: int = 8192,
        seed: int = 0,
    ):
        super().__init__(body, batch_size, seed)
        motion_files(folder)
        self.folder, self.cache = Path(folder), Path(cache)
        self.frames_per_file, self.every = frames_per_file, every
        self.val_annotations = val_annotations or ()
        self.shares = {"val": 0.02, "test": 0.02} | dict(shares or {})
        self.n_frames = {"val": val_frames, "test": test_frames}

    @cached_property
    def motions(self) -> Motions:
        """Every motion that can be used."""
        return Motions.load(self.folder, self.cache / "motions")

    @property
    def problems(self) -> list[str]:
        """One line per motion file that cannot be used; on the first process only."""
        return self.motions.problems if self.trainer.is_global_zero else []

    @cached_property
    def validation_file(self) -> Path | None:
        """The annotation file whose bodies are used for validation, or None."""
        return _first_existing(self.val_annotations)

    @cached_property
    def _annotated_validation(self) -> Motions:
        return Motions.of_annotations(self.validation_file)

    def frames(self, split: str, **options) -> MotionDataset:
        """The frames of a split; `options` as for `MotionDataset`, for training all frames by default."""
        if split == "val" and self.validation_file is not None:
            motions = self._annotated_validation
        else:
            motions = self.motions.split(split, self.shares)
        return MotionDataset(motions, limit=self.n_frames.get(split), **options)

    def prepare_data(self) -> None:
        """Read the motions once, in one process, and report files that cannot be used."""
        problems = self.motions.problems
        if problems:
            listed = "\n  ".join(problems)
            log.warning("%d motion file(s) cannot be used and are left out:\n  %s", len(problems), listed)
        self.require_genders(self.motions)
        if not self.trainer.training:
            return
        if self.validation_file is not None:
            self.require_genders(self._annotated_validation)
            log.info("validation on %d bodies of %s", len(self.frames("val")), self.validation_file)
        else:
            missing = f" ({' and '.join(map(str, self.val_annotations))} do not exist)" if self.val_annotations else ""
            log.info("validation on %d frames of motions that are held out%s", len(self.frames("val")), missing)

    def train_dataset(self) -> Dataset:
        options = {"frames_per_file": self.frames_per_file, "every": self.every}
        return self.frames("train", **options, epoch=self.trainer.current_epoch, seed=self.seed)

    def fixed_dataset(self, split: str) -> Dataset:
        return self.frames(split)


class MotionMeshData(MotionData):
    """Batches {"vertices" (B, V, 3) canonical, "pose" (B, 21, 3), "betas" (B, 10), "gender" (B,)}; see `MotionData`.

    Args:
        train_annotations: for fine-tuning: half of each training batch are bodies of the first of these annotation
            files that exists, in a new random order every epoch; the motions determine the length of an epoch. None
            trains on motions only.
        arguments, options: as for `MotionData`.

    Raises ValueError for an odd `batch_size` with `train_annotations`, and FileNotFoundError before the training if
    none of the files exists.
    """

    def __init__(self, *arguments, train_annotations: Sequence[str | Path] | None = None, **options):
        super().__init__(*arguments, **options)
        self.train_annotations = train_annotations
        if train_annotations and self.batch_size % 2:
            raise ValueError(f"data.batch_size={self.batch_size} must be even: half are of data.train_annotations.")

    @cached_property
    def _annotated_training(self) -> Motions:
        return Motions.of_annotations(_require_annotations(self.train_annotations))

    def prepare_data(self) -> None:
        super().prepare_data()
        if self.train_annotations and self.trainer.training:
            self.require_genders(self._annotated_training)
            file = _require_annotations(self.train_annotations)
            log.info("half of each batch from the %d bodies of %s", len(self._annotated_training), file)

    def train_dataloader(self) -> DataLoader:
        if not self.train_annotations:
            return super().train_dataloader()
        annotated = MotionDataset(self._annotated_training)
        pairs = _Pairs(self.train_dataset(), annotated, self.seed, self.trainer.current_epoch)
        return training_loader(pairs, self.batch_size // 2, self.trainer, self.seed, collate_fn=_join_pairs)


class MotionTokenData(MotionData):
    """Batches {"tokens": (B, N)}; see `MotionData`.

    Args:
        tokenizer: makes the tokens.
        cache_tokens: compute the tokens of every training frame once and store them (two million frames are 0.2 GB, in
            files of 65,536 frames, so that an interrupted computation can resume). This pays off if an epoch uses a
            large part of the frames (`every`). With one frame per file, 500 epochs use fewer frames than there are, so
            False computes the tokens of each batch when needed. Tokens of validation and test are always stored.
        options: as for `MotionData`.
    """

    def __init__(self, body: SMPLHBody, tokenizer: MeshVQVAE, cache_tokens: bool = False, **options):
        super().__init__(body, **options)
        self.tokenizer, self.cache_tokens = tokenizer, cache_tokens
        self._tokens: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        """Pack the motions and compute the tokens to be stored, once, in one process, on its training device."""
        super().prepare_data()
        self.tokenizer.to(self.trainer.strategy.root_device)
        for split in ("train", "val") if self.trainer.training else ("test",):
            if self._is_cached(split):
                self._cached(split)

    def _is_cached(self, split: str) -> bool:
        # A dry run must not start by computing the tokens of every frame.
        return (self.cache_tokens or split != "train") and not self.trainer.fast_dev_run

    def train_dataset(self) -> Dataset:
        frames = super().train_dataset()
        return TokenDataset(self._cached("train"), frames.place) if self._is_cached("train") else frames

    def fixed_dataset(self, split: str) -> Dataset:
        return TokenDataset(self._cached(split)) if self._is_cached(split) else super().fixed_dataset(split)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        if "tokens" in batch:
            return batch
        vertices = super().on_after_batch_transfer(batch, dataloader_idx)["vertices"]
        with torch.no_grad():
            return {"tokens": self.tokenizer.to(vertices.device).encode(vertices)}

    def _cached(self, split: str) -> Tensor:
        """Tokens (P, N) int16 of all frames of a split."""
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


class _Pairs(Dataset):
    """Items (first[i], second[j]): each item of `first` once, `second` in an order drawn from (seed, epoch).

    No item of `second` is repeated before all have been used.
    """

    def __init__(self, first: Dataset, second: Dataset, seed: int, epoch: int):
        order = np.random.default_rng((seed, epoch)).permutation(len(second))
        self.first, self.second, self.partner = first, second, np.resize(order, len(first))

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> tuple[dict, dict]:
        return self.first[index], self.second[int(self.partner[index])]


def _join_pairs(pairs: list[tuple[dict, dict]]) -> dict:
    return default_collate([body for pair in pairs for body in pair])


def _first_existing(paths: Sequence[str | Path]) -> Path | None:
    return next((Path(path) for path in paths if Path(path).is_file()), None)


def _require_annotations(paths: Sequence[str | Path]) -> Path:
    path = _first_existing(paths)
    if path is None:
        raise FileNotFoundError(
            f"{' and '.join(map(str, paths))} do not exist: python tools/prepare_data.py 3dpw makes them from the raw "
            "files of 3DPW (see datasets/README.md)."
        )
    return path


def _as_bodies(items: list[dict]) -> dict:
    batch = default_collate(items)
    return {"pose": batch["pose"], "shape": batch["betas"], "gender": batch["gender"]}
