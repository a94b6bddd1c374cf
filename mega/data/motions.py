"""Motions of people with SMPL's joints: their splits, and single frames of them, each one a posed body."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mega.bodies.smplh import GENDERS, N_BETAS
from mega.data.motion_files import Motion, pack_motions
from mega.data.published import PublishedAnnotations


class Motions:
    """Motions and their packed poses.

    Args:
        motions: M of them, each with a frame at least.
        poses: (rows, 63) float32.
        problems: what could not be used: a line a file.
    """

    def __init__(self, motions: Sequence[Motion], poses: np.ndarray, problems: Sequence[str] = ()):
        self.motions, self.poses, self.problems = list(motions), poses, list(problems)
        self.frames = np.array([m.frames for m in self.motions], np.int64)  # (M,)
        self.row = np.array([m.row for m in self.motions], np.int64)  # (M,)
        self.betas = np.array([m.betas for m in self.motions], np.float32).reshape(-1, N_BETAS)  # (M, 10)
        self.gender = np.array([m.gender for m in self.motions], np.int64)  # (M,)

    def __len__(self) -> int:
        return len(self.motions)

    @classmethod
    def load(cls, folder: str | Path, cache: str | Path) -> Motions:
        """All motions of a folder. Files that are new or changed since the last time are read, with a progress bar.

        Args:
            folder: of the animations; nothing is written there.
            cache: folder for the packed poses and their index.

        Raises:
            FileNotFoundError: if there is no such folder, with where the animations come from.
            ValueError: if none of the files in it can be used.
        """
        folder = Path(folder)
        known, poses = pack_motions(folder, Path(cache))
        problems = [f"{folder / motion.path}: {motion.problem}" for motion in known if motion.problem]
        if len(problems) == len(known):
            raise ValueError("\n".join([f"None of the {len(known)} files in {folder} can be used:", *problems[:5]]))
        return cls([motion for motion in known if not motion.problem], poses, problems)

    @classmethod
    def of_annotations(cls, path: str | Path) -> Motions:
        """The bodies of an annotation file (3DPW, EMDB, …), each as a motion of one frame.

        Raises as `PublishedAnnotations.load`.
        """
        people = PublishedAnnotations.load(path)
        poses = people.pose[:, 1:].reshape(len(people), -1).astype(np.float32)  # without the root
        rows = zip(people.row, people.betas.astype(np.float32), people.gender, strict=True)
        motions = [
            Motion(f"{path}, row {row}", (0, 0), 1, betas, GENDERS.index(gender), row=i)
            for i, (row, betas, gender) in enumerate(rows)
        ]
        return cls(motions, poses)

    def split(self, name: str, shares: Mapping[str, float]) -> Motions:
        """The motions of "train", "val" or "test". A file stays in its split, whatever other files there are.

        Args:
            shares: of "val" and "test", between 0 and 1, of the files; the rest is for training.

        Raises ValueError if the shares leave nothing for training, or the split is empty.
        """
        val, test = shares["val"], shares["test"]
        if min(val, test) < 0 or val + test >= 1:
            raise ValueError(f"data.shares: val={val} and test={test} must be 0 or more, and together less than 1.")
        bounds = {"val": (0, val), "test": (val, val + test), "train": (val + test, 1)}[name]
        chosen = [motion for motion in self.motions if bounds[0] <= _place(motion.path) < bounds[1]]
        if not chosen:
            raise ValueError(
                f"None of the {len(self)} motions falls into the {name} split, with a share of "
                f"{bounds[1] - bounds[0]:g}: change data.shares, or give more motions."
            )
        return Motions(chosen, self.poses)


class MotionDataset(Dataset):
    """Single frames of motions, without their root rotation.

    An item is {"pose": (21, 3) axis-angle, radians; "betas": (10,); "gender": index into GENDERS}.

    Args:
        motions: that the frames are of.
        frames_per_file: so many random frames of each motion (published: 1), drawn anew every epoch: each is a function
            of (seed, epoch, path). None takes one frame in `every` instead.
        every: one frame in so many of each motion, one at least.
        epoch: its number. With `every`, all frames have been seen after `every` epochs. The number of frames stays
            the same.
        limit: no more than so many frames, spread evenly over all.
        seed: of the random frames.

    Raises ValueError if `frames_per_file` or `every` is not 1 or more, or both are given.
    """

    def __init__(
        self,
        motions: Motions,
        frames_per_file: int | None = None,
        every: int | None = None,
        epoch: int = 0,
        limit: int | None = None,
        seed: int = 0,
    ):
        if frames_per_file is not None and every is not None:
            raise ValueError(
                f"data.frames_per_file={frames_per_file} and data.every={every} exclude each other: set one to null."
            )
        for name, value in (("frames_per_file", frames_per_file), ("every", every)):
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value}: give 1 or more.")
        self.motions = motions
        if frames_per_file is not None:
            motion = np.repeat(np.arange(len(motions)), frames_per_file)
            drawn = [_place(f"{seed}, {epoch}, {n}, {m.path}") for m in motions.motions for n in range(frames_per_file)]
            frame = (np.array(drawn) * motions.frames[motion]).astype(np.int64)
        else:
            every = every or 1
            counts = np.maximum(1, motions.frames // every)
            motion = np.repeat(np.arange(len(motions)), counts)
            nth = np.arange(len(motion)) - np.repeat(counts.cumsum() - counts, counts)
            # Only a motion that is shorter than `every` needs the modulus.
            frame = (epoch % every + every * nth) % motions.frames[motion]
        if limit is not None and limit < len(motion):
            kept = np.linspace(0, len(motion) - 1, limit).round().astype(np.int64)
            motion, frame = motion[kept], frame[kept]
        self.motion, self.frame = motion, frame

    def __len__(self) -> int:
        return len(self.motion)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        motion = self.motion[index]
        # A copy: the map cannot be written to.
        pose = np.array(self.motions.poses[self.motions.row[motion] + self.frame[index]])
        return {
            "pose": torch.from_numpy(pose).view(-1, 3),
            "betas": torch.from_numpy(self.motions.betas[motion]),
            "gender": int(self.motions.gender[motion]),
        }

    @property
    def place(self) -> np.ndarray:
        """(len,) where each frame stands among all of the motions, one motion after the other."""
        return (self.motions.frames.cumsum() - self.motions.frames)[self.motion] + self.frame

    def fingerprint(self, items: slice) -> str:
        """A name for the content of some items."""
        motion, frame = self.motion[items], self.frame[items]
        digest = hashlib.sha256(np.ascontiguousarray(self.motions.poses[self.motions.row[motion] + frame]))
        digest.update(self.motions.betas[motion])
        digest.update(self.motions.gender[motion])
        return digest.hexdigest()[:16]


def _place(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, uniform over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
