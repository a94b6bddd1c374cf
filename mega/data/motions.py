"""The animation files that users hold, and all their poses packed into one.

A file is `<any folders>/*.npz` with `poses` (T, >= 66) axis-angle, root first (72 numbers a frame in SMPL, 165 in
SMPL-X), `betas` (>= 10) and `gender`. Files whose path holds `shape` are no motions.

The packed file is memory-mapped float32. BEDLAM has some 2,300 motions, of one to two million frames: 63 numbers each
are about 0.5 GB, which the processes of a training share, and a frame at random is one read of 252 bytes. Opening the
motions' own files instead would take milliseconds a frame; float16 would save a quarter of a gigabyte and round an
angle of two radians by up to a thousandth.

Motions of people with SMPL's joints: their splits, and single frames of them, each one a posed body.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mega.bodies.smplh import GENDERS, N_BETAS, SMPL_JOINTS, gender_name
from mega.data.smpl_annotations import SMPLAnnotations
from mega.external_files import FILES, describe
from mega_common.atomic_io import whole_file

_N_POSE = 3 * len(SMPL_JOINTS)
_POSE = slice(3, 3 + _N_POSE)  # of a frame: after the root
_INDEX = "index.npz"
_NEVER = (-1, -1)  # a stamp that no file has: read it again the next time
_CONTENT_ERRORS = (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, EOFError)


@dataclass(frozen=True)
class Motion:
    """A motion file.

    Attributes:
        path: relative to the animations' folder, with slashes.
        stamp: (size, time of the last change in ns), by which a changed file is noticed.
        frames: T; 0 if the file cannot be used.
        betas: (10,).
        gender: index into GENDERS.
        problem: why it cannot be used; empty if it can.
        row: of the first frame among all packed ones.
    """

    path: str
    stamp: tuple[int, int]
    frames: int
    betas: np.ndarray
    gender: int
    problem: str = ""
    row: int = 0


def motion_files(folder: str | Path) -> dict[str, tuple[int, int]]:
    """{path relative to the folder: (size, time of the last change in ns)} of the motion files in it, sorted.

    Raises FileNotFoundError if there is no such folder, ValueError if it holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        source = next(describe(file) for file in FILES if file.path == "datasets/bedlam_animations")
        raise FileNotFoundError(f"{folder} is missing: {source}. (python check_setup.py lists every file.)")
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.npz"))}
    stamps = {name: _stamp(path) for name, path in paths.items() if "shape" not in name}
    if not stamps:
        raise ValueError(
            f"{folder} holds no motions: files *.npz, in it or in folders below, without `shape` in a name."
        )
    return stamps


def read_motion(path: str | Path) -> tuple[np.ndarray, np.ndarray, int]:
    """(poses (T, 63) float32 without the root, betas (10,), index into GENDERS) of a motion file.

    Raises ValueError that says what is wrong with the file, OSError if it cannot be opened.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            poses, betas, gender = (file[name] for name in ("poses", "betas", "gender"))
        poses, betas = np.asarray(poses, np.float32), np.asarray(betas, np.float32)
    except _CONTENT_ERRORS as error:
        raise ValueError(f"it cannot be read as a motion (arrays poses, betas and gender): {error}") from error
    if poses.ndim != 2 or poses.shape[1] < _POSE.stop or len(poses) == 0:
        raise ValueError(f"poses has shape {poses.shape}, expected (T, {_POSE.stop}) or more, of one frame at least")
    if betas.ndim != 1 or len(betas) < N_BETAS:
        raise ValueError(f"betas has shape {betas.shape}, expected ({N_BETAS},) or more")
    if gender.size != 1:
        raise ValueError(f"gender has shape {gender.shape}, expected one word")
    poses, betas = poses[:, _POSE], betas[:N_BETAS]
    for name, values in (("poses", poses), ("betas", betas)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite everywhere")
    return poses, betas, GENDERS.index(gender_name(gender.reshape(-1).astype(str)[0]))


def pack_motions(folder: Path, cache: Path) -> tuple[list[Motion], np.ndarray]:
    """Every motion file of a folder, and the poses (rows, 63) of all. What is not in the cache yet is read and added.

    Args:
        folder: of the animations; nothing is written there.
        cache: folder for the packed poses and their index.

    Raises as `motion_files`.
    """
    stamps = motion_files(folder)
    motions, poses = _read_cache(cache)
    if {motion.path: motion.stamp for motion in motions} == stamps:
        return motions, poses
    cache.mkdir(parents=True, exist_ok=True)
    known = {(motion.path, motion.stamp): motion for motion in motions}
    temporary = cache / f"{os.getpid()}.tmp"
    motions = []
    try:
        with temporary.open("wb") as file:
            for name, stamp in tqdm(stamps.items(), desc=f"motions of {folder}", unit="file"):
                motion = known.get((name, stamp))
                if motion is None:
                    motion, read = _read_or_refuse(folder, name, stamp)
                else:
                    read = poses[motion.row : motion.row + motion.frames]
                file.write(np.ascontiguousarray(read))
                motions.append(motion)
        content = repr([(motion.path, motion.stamp, motion.frames) for motion in motions])
        packed = cache / f"poses_{hashlib.sha256(content.encode()).hexdigest()[:16]}.f32"
        temporary.replace(packed)
    finally:
        temporary.unlink(missing_ok=True)
    _write_index(cache, motions, packed)  # last, since it says which poses are its own
    for old in cache.glob("poses_*.f32"):
        if old != packed:
            old.unlink()
    motions = _with_rows(motions)
    return motions, _map_poses(packed, sum(motion.frames for motion in motions))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere, which `read_motion` will tell of
        return _NEVER
    return stat.st_size, stat.st_mtime_ns


def _read_cache(cache: Path) -> tuple[list[Motion], np.ndarray]:
    """What was packed before: nothing if there is no cache, or none that can be used."""
    nothing = [], np.empty((0, _N_POSE), np.float32)
    try:
        with np.load(cache / _INDEX, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
        poses = _map_poses(cache / columns.pop("poses").item(), columns["frames"].sum())
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        motions = [
            Motion(
                path=str(row["path"]),
                stamp=(int(row["size"]), int(row["time"])),
                frames=int(row["frames"]),
                betas=row["betas"],
                gender=int(row["gender"]),
                problem=str(row["problem"]),
            )
            for row in rows
        ]
    except (*_CONTENT_ERRORS, OSError):
        return nothing
    return _with_rows(motions), poses


def _map_poses(path: Path, rows: int) -> np.ndarray:
    if rows == 0:
        return np.empty((0, _N_POSE), np.float32)
    return np.memmap(path, np.float32, "r", shape=(int(rows), _N_POSE))


def _with_rows(motions: list[Motion]) -> list[Motion]:
    ends = np.cumsum([motion.frames for motion in motions])
    return [replace(motion, row=int(end) - motion.frames) for motion, end in zip(motions, ends, strict=True)]


def _write_index(cache: Path, motions: list[Motion], poses: Path) -> None:
    columns = {
        "poses": np.array(poses.name),
        "path": np.array([motion.path for motion in motions]),
        "size": np.array([motion.stamp[0] for motion in motions]),
        "time": np.array([motion.stamp[1] for motion in motions]),
        "frames": np.array([motion.frames for motion in motions]),
        "betas": np.array([motion.betas for motion in motions], np.float32),
        "gender": np.array([motion.gender for motion in motions]),
        "problem": np.array([motion.problem for motion in motions]),
    }
    with whole_file(cache / _INDEX) as file:
        np.savez(file, **columns)


def _read_or_refuse(folder: Path, name: str, stamp: tuple[int, int]) -> tuple[Motion, np.ndarray]:
    try:
        poses, betas, gender = read_motion(folder / name)
    except (ValueError, OSError) as error:
        stamp = _NEVER if isinstance(error, OSError) else stamp  # not the file's fault: it may be there next time
        refused = Motion(name, stamp, 0, np.zeros(N_BETAS, np.float32), 0, problem=str(error))
        return refused, np.empty((0, _N_POSE), np.float32)
    return Motion(name, stamp, len(poses), betas, gender), poses


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

        Raises as `SMPLAnnotations.load`.
        """
        people = SMPLAnnotations.load(path)
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
