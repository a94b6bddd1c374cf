"""Data modules of posed frames: canonical meshes for the tokenizer, tokens for the pre-training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, StackDataset, Subset, default_collate

from mega.bodies import SMPLHBody
from mega.bodies.smplh import GENDERS
from mega.data.loading import EpochData, training_loader
from mega.data.motions import (
    DEFAULT_FPS,
    FRAMES_PER_SECOND,
    MotionDataset,
    Motions,
    check_frame_options,
    motion_files,
)
from mega.data.random_bodies import TokenDataset, cached_tokens
from mega.data.smpl_annotations import first_existing
from mesh_vq_vae import MeshVQVAE

log = logging.getLogger(__name__)

_CHUNK = 64  # frames turned into tokens at a time
_SHARD = 1024 * _CHUNK  # frames whose tokens share a file


class MotionMeshData(EpochData):
    """Batches {"vertices" (B, V, 3) canonical, "pose" (B, 21, 3), "betas" (B, 10), "gender" (B,)} of motions.

    Training takes different frames of each motion every epoch. Validation and test use the bodies of an annotation file
    if there is one (published: 3DPW), else frames spread evenly over held-out motions. Meshes are made on the training
    device: a frame takes 300 bytes to load, its mesh 80 kB.

    Args:
        body: poses the frames, each with its own gender.
        folder: folder of the animations (`motion_files`); None for none, to test on an annotation file.
        cache: folder for the packed motions and for tokens.
        batch_size: bodies per step and process.
        frames_per_file, frames_per_second: the frames of a training epoch, see `MotionDataset`. The frames of
            validation and test are always thinned to 30 per second, so that they do not depend on the files' rates.
        default_fps: frames per second of motion files that do not give it.
        shares: fractions of the motion files for "val" and "test"; the splits are disjoint.
        train_annotations: for fine-tuning: half of each training batch are bodies of the first of these files that
            exists, in a new random order every epoch; the motions determine the length of an epoch.
        val_annotations, test_annotations: the first of these files that exists is used instead of held-out motions.
        val_frames, test_frames: maximum numbers of bodies, spread evenly; None for all.
        seed: determines the training frames and their order.

    Raises FileNotFoundError or ValueError if there are no motions in the folder, and ValueError for an odd `batch_size`
    with `train_annotations`. Before a training or test starts, FileNotFoundError is raised if none of its annotation
    files exists (validation uses held-out motions then) or the body of a gender is missing.
    """

    def __init__(
        self,
        body: SMPLHBody,
        folder: str | Path | None,
        cache: str | Path | None,
        batch_size: int,
        frames_per_file: int | None = None,
        frames_per_second: float | None = None,
        default_fps: float = DEFAULT_FPS,
        shares: Mapping[str, float] | None = None,
        train_annotations: Sequence[str | Path] | None = None,
        val_annotations: Sequence[str | Path] | None = None,
        test_annotations: Sequence[str | Path] | None = None,
        val_frames: int | None = 1024,
        test_frames: int | None = 8192,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed)
        if train_annotations and batch_size % 2:
            raise ValueError(f"data.batch_size={batch_size} must be even: half are of data.train_annotations.")
        check_frame_options(frames_per_file, frames_per_second)
        if folder is not None:
            motion_files(folder)
        self.body, self.folder, self.cache = body, folder, cache
        self.frames_per_file, self.frames_per_second = frames_per_file, frames_per_second
        self._of_epoch = {"frames_per_file": frames_per_file, "frames_per_second": frames_per_second}
        self.default_fps = default_fps
        self.shares = {"val": 0.02, "test": 0.02} | dict(shares or {})
        self.annotations = {"train": train_annotations, "val": val_annotations, "test": test_annotations}
        self.n_frames = {"val": val_frames, "test": test_frames}
        self._annotated: dict[Path, Motions] = {}

    @cached_property
    def motions(self) -> Motions:
        """Every motion that can be used."""
        if self.folder is None:
            raise ValueError("data.folder=null: without motions, only a test on data.test_annotations is possible.")
        motions = Motions.load(self.folder, Path(self.cache) / "motions", self.default_fps)
        self._require_bodies(motions)
        return motions

    @property
    def problems(self) -> list[str]:
        """One line per motion file that cannot be used; on the first process only."""
        return self.motions.problems if self.trainer.is_global_zero else []

    def annotation_file(self, split: str) -> Path | None:
        """The first annotation file of a split that exists, None if none is given or, for validation, none exists."""
        paths = self.annotations[split] or ()
        path = first_existing(paths)
        if path is None and paths and split != "val":
            raise FileNotFoundError(
                f"{' and '.join(map(str, paths))} do not exist: python tools/prepare_data.py 3dpw makes them from the "
                "raw files of 3DPW (see datasets/README.md)."
            )
        return path

    def annotated(self, path: Path) -> Motions:
        """The bodies of an annotation file."""
        if path not in self._annotated:
            self._annotated[path] = Motions.of_annotations(path)
            self._require_bodies(self._annotated[path])
        return self._annotated[path]

    def _require_bodies(self, motions: Motions) -> None:
        """Raise FileNotFoundError for a gender whose body is missing, before anything is computed."""
        for gender in np.unique(motions.gender):
            self.body.gender(GENDERS[gender])

    def frames(self, split: str, **options) -> MotionDataset:
        """The frames of a split; `options` as for `MotionDataset`, by default 30 per second."""
        path = None if split == "train" else self.annotation_file(split)
        motions = self.motions.split(split, self.shares) if path is None else self.annotated(path)
        return MotionDataset(motions, limit=self.n_frames.get(split), **options)

    def prepare_data(self) -> None:
        """Read the motions once, in one process, and report what they are and which files cannot be used."""
        if self.folder is not None:
            for note in self.motions.notes:
                log.info("%s", note)
            if problems := self.motions.problems:
                log.warning(
                    "%d motion file(s) cannot be used and are left out:\n  %s", len(problems), "\n  ".join(problems)
                )
        if self.folder is not None and self.trainer.training:
            rule = f"{self.frames_per_second or FRAMES_PER_SECOND:g} per second of each motion"
            if self.frames_per_file is not None:
                rule = f"{self.frames_per_file} random ones of each motion, whatever its frame rate"
            log.info("an epoch has %d frames: %s", len(self.frames("train", **self._of_epoch)), rule)
        if self.trainer.training and (path := self.annotation_file("train")):
            log.info("half of each batch from the %d bodies of %s", len(self.annotated(path)), path)
        split, name = ("val", "validation") if self.trainer.training else ("test", "test")
        if path := self.annotation_file(split):
            log.info("%s on %d bodies of %s", name, len(self.frames(split)), path)
        elif self.trainer.training:
            given = self.annotations["val"]
            missing = f" ({' and '.join(map(str, given))} do not exist)" if given else ""
            log.info("validation on %d frames of motions that are held out%s", len(self.frames("val")), missing)

    def train_dataset(self) -> Dataset:
        return self.frames("train", **self._of_epoch, epoch=self.trainer.current_epoch, seed=self.seed)

    def fixed_dataset(self, split: str) -> Dataset:
        return self.frames(split)

    def train_dataloader(self) -> DataLoader:
        path = self.annotation_file("train")
        if path is None:
            return super().train_dataloader()
        frames, annotated = self.train_dataset(), MotionDataset(self.annotated(path))
        # No body is repeated before all have been used.
        order = np.random.default_rng((self.seed, self.trainer.current_epoch)).permutation(len(annotated))
        pairs = StackDataset(frames, Subset(annotated, np.resize(order, len(frames)).tolist()))
        return training_loader(pairs, self.batch_size // 2, self.trainer, self.seed, collate_fn=_join_pairs)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        with torch.no_grad():
            body = self.body.to(batch["pose"].device)
            return batch | {"vertices": body(batch["pose"], batch["betas"], batch["gender"])}


class MotionTokenData(MotionMeshData):
    """Batches {"tokens": (B, N)}; see `MotionMeshData`.

    Args:
        tokenizer: makes the tokens.
        cache_tokens: compute the tokens of every training frame once and store them (two million frames are 0.2 GB, in
            files of 65,536 frames, so that an interrupted computation can resume). This pays off if an epoch uses a
            large part of the frames (`frames_per_second`). With one frame per file, 500 epochs use fewer frames than
            there are, so False computes the tokens of each batch when needed. Tokens of validation and test are always
            stored.
        options: as for `MotionMeshData`.
    """

    def __init__(self, body: SMPLHBody, tokenizer: MeshVQVAE, cache_tokens: bool = False, **options):
        super().__init__(body, **options)
        self.tokenizer, self.cache_tokens = tokenizer, cache_tokens
        self._tokens: dict[str, TokenDataset] = {}

    def prepare_data(self) -> None:
        """Pack the motions and compute the tokens to be stored, once, in one process, on its training device."""
        super().prepare_data()
        self.tokenizer.to(self.trainer.strategy.root_device)
        for split in ("train", "val") if self.trainer.training else ("test",):
            if self._is_cached(split):
                self._cached(split)

    def train_dataset(self) -> Dataset:
        frames = super().train_dataset()
        return Subset(self._cached("train"), frames.place) if self._is_cached("train") else frames

    def fixed_dataset(self, split: str) -> Dataset:
        return self._cached(split) if self._is_cached(split) else super().fixed_dataset(split)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        if "tokens" in batch:
            return batch
        vertices = super().on_after_batch_transfer(batch, dataloader_idx)["vertices"]
        with torch.no_grad():
            return {"tokens": self.tokenizer.to(vertices.device).encode(vertices)}

    def _is_cached(self, split: str) -> bool:
        # A dry run must not start by computing the tokens of every frame.
        return (self.cache_tokens or split != "train") and not self.trainer.fast_dev_run

    def _cached(self, split: str) -> TokenDataset:
        """The tokens of all frames of a split."""
        if split not in self._tokens:
            options = {"frames_per_second": np.inf} if split == "train" else {}  # epochs choose among all frames
            frames, shards = self.frames(split, **options), []
            for number, start in enumerate(range(0, len(frames), _SHARD)):
                stop = min(start + _SHARD, len(frames))
                path = Path(self.cache) / f"motions_{split}_{number:03}.npz"
                batches = DataLoader(frames, _CHUNK, sampler=range(start, stop), collate_fn=_as_bodies)
                key = f"{self.body.name}, {frames.fingerprint(slice(start, stop))}"
                shards.append(cached_tokens(path, self.tokenizer, self.body, batches, key)["tokens"])
            self._tokens[split] = TokenDataset(np.concatenate(shards))
        return self._tokens[split]


def _join_pairs(pairs: list[tuple[dict, dict]]) -> dict:
    return default_collate([body for pair in pairs for body in pair])


def _as_bodies(items: list[dict]) -> dict:
    batch = default_collate(items)
    return {"pose": batch["pose"], "shape": batch["betas"], "gender": batch["gender"]}
