"""Motion files: their check, their poses packed into one memory-mapped file, and single frames as a data set.

A motion file is `<any folders>/*.npz` with `poses` (T, >= 66) axis-angle, root first (72 numbers per frame in SMPL, 165
in SMPL-X), `betas` (>= 10) and `gender`. Files with `shape` in their path are not motions.

BEDLAM has about 2,300 motions with one to two million frames: 63 float32 numbers each are about 0.5 GB, which all
processes of a training share, and a random frame is one read of 252 bytes. Opening the motion files themselves would
take milliseconds per frame; float16 would save 0.25 GB and round an angle of two radians by up to 0.001.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mega.bodies.smplh import GENDERS, N_BETAS, SMPL_JOINTS, gender_name
from mega.data.smpl_annotations import SMPLAnnotations
from mega.external_files import FILES, describe, require
from mega_common.files import read_arrays, whole_file, write_json

_N_POSE = 3 * len(SMPL_JOINTS)
_POSE = slice(3, 3 + _N_POSE)  # of a frame: after the root
_INDEX = "index.json"
_UNUSED = ("openpose", "gtkps", "pose_world", "trans_cam", "cam_int", "cam_ext")  # fields that training does not read
_NEVER = [-1, -1]  # a stamp that no file has, so that the file is read again the next time


@dataclass(frozen=True)
class Motion:
    """A motion file.

    Attributes:
        path: relative to the folder of the animations, with slashes.
        stamp: [size, modification time in ns], to notice changes.
        frames: T; 0 if the file cannot be used.
        betas: 10 numbers.
        gender: index into GENDERS.
        problem: why the file cannot be used; empty if it can.
        row: index of the first frame in the packed poses.
    """

    path: str
    stamp: list[int]
    frames: int
    betas: list[float]
    gender: int
    problem: str = ""
    row: int = 0


def motion_files(folder: str | Path) -> dict[str, list[int]]:
    """{path relative to the folder: [size, modification time in ns]} of its motion files, sorted.

    Raises FileNotFoundError if there is no such folder, ValueError if it holds no motions.
    """
    folder = Path(folder)
    if not folder.is_dir():
        source = next(describe(file) for file in FILES if file.path == "datasets/bedlam_animations")
        raise FileNotFoundError(f"{folder} is missing: {source}. (python tools/check_setup.py lists every file.)")
    stamps = {}
    for path in sorted(folder.rglob("*.npz")):
        name = path.relative_to(folder).as_posix()
        if "shape" not in name:
            try:
                stamps[name] = [path.stat().st_size, path.stat().st_mtime_ns]
            except OSError:  # a dangling link: `read_motion` reports it
                stamps[name] = _NEVER
    if not stamps:
        raise ValueError(f"{folder} holds no motions: no *.npz files, at any depth, without `shape` in their path.")
    return stamps


def read_motion(path: str | Path, check_unused: bool = False) -> tuple[np.ndarray, np.ndarray, int]:
    """(poses (T, 63) float32 without the root, betas (10,), index into GENDERS) of a motion file.

    Args:
        check_unused: check what is not read as well: root, hands, and the translation `trans` (T, 3).

    Raises ValueError with everything that is wrong with the file, OSError if it cannot be opened.
    """
    try:
        arrays = read_arrays(Path(path), ("poses", "betas", "gender", *(["trans"] if check_unused else [])))
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise ValueError(str(error).removeprefix(f"{path} ")) from error
    poses, betas, gender = (arrays.get(name) for name in ("poses", "betas", "gender"))
    wrong = [f"lacks {name}" for name in ("poses", "betas", "gender") if name not in arrays]
    frames = len(poses) if poses is not None and poses.ndim else 0
    if poses is not None and not frames:
        wrong.append("poses holds no frames")
    # The least shape of each array, of which only the last axis may be longer, and what of this axis must be finite.
    expected = {"poses": ((frames, _POSE.stop), slice(None) if check_unused else _POSE)}
    expected |= {"betas": ((N_BETAS,), slice(N_BETAS)), "trans": ((frames, 3), slice(None))}
    for name, array in arrays.items():
        if name == "gender":
            continue
        least, part = expected[name]
        fits = array.ndim == len(least) and array.shape[:-1] == least[:-1] and array.shape[-1] >= least[-1]
        if not fits or array.dtype.kind not in "fiu":
            wrong.append(f"{name} has shape {array.shape} of {array.dtype}, expected numbers {least} or more")
            continue
        bad = np.flatnonzero(~np.isfinite(np.atleast_2d(array[..., part]).astype(np.float32)).all(axis=1))
        if len(bad):
            wrong.append(f"{name} is not finite in {len(bad)} rows, the first is {bad[0]}")
    if gender is not None:
        try:
            if gender.size != 1:
                raise ValueError(f"gender has shape {gender.shape}, expected one word")
            gender = GENDERS.index(gender_name(gender.reshape(-1).astype(str)[0]))
        except ValueError as error:
            wrong.append(str(error).rstrip("."))
    if wrong:
        raise ValueError("; ".join(wrong))
    return poses[:, _POSE].astype(np.float32), betas[:N_BETAS].astype(np.float32), gender


def check_bedlam(animations: str | None, annotations: Sequence[str] = (), report: str | None = None) -> int:
    """Read BEDLAM's files as training does, and print what each holds and everything that is wrong with it.

    Args:
        animations: folder of motion files; None for none.
        annotations: files, or folders of `.npz`, of people in pictures.
        report: `.json` that gets the result for every file; None for none.

    Returns the number of files with errors. Raises FileNotFoundError if a file or folder is missing or holds no `.npz`.

    Source: Black et al., BEDLAM: A Synthetic Dataset of Bodies Exhibiting Detailed Lifelike Animated Motion, CVPR 2023.
    """
    results: dict[str, str] = {}
    n_wrong = 0
    for place in [*filter(None, [animations]), *annotations]:
        folder = Path(place)
        if not folder.is_dir():
            require(folder)
        files = sorted(folder.rglob("*.npz")) if folder.is_dir() else [folder]
        if not files:
            raise FileNotFoundError(f"There are no .npz files in {folder}.")
        totals, others, wrong = Counter(), [], []
        for file in tqdm(files, desc=place, unit="file"):
            if place is animations and "shape" in file.relative_to(folder).as_posix():
                results[str(file)] = "not a motion, its path holds `shape`"
                others.append(file)
                continue
            try:
                counts = _count_frames(file) if place is animations else _count_people(file)
            except (OSError, ValueError) as error:
                results[str(file)] = "wrong: " + str(error).removeprefix(f"{file}: ").removeprefix(f"{file} ")
                wrong.append(file)
            else:
                results[str(file)] = _as_text(counts)
                totals += counts
        fine = len(files) - len(others) - len(wrong)
        print(f"{place}: {len(files)} files, {fine} fine, {len(others)} not motions, {len(wrong)} wrong")
        print(_as_text(totals), *(f"  {file}: {results[str(file)]}" for file in others + wrong), sep="\n")
        n_wrong += len(wrong)
    if report is not None:
        write_json(report, {"wrong": n_wrong, "files": results})
    return n_wrong


def _count_frames(file: Path) -> Counter:
    poses, _, gender = read_motion(file, check_unused=True)
    return Counter({"frames": len(poses), GENDERS[gender]: 1})


def _count_people(file: Path) -> Counter:
    people = SMPLAnnotations.load(file, also=_UNUSED)
    rotated = sum("closeup" in name for name in people.imgname.tolist())
    counts = Counter({"people": len(people), "in pictures stored rotated (closeup)": rotated})
    return counts + Counter(people.gender.tolist())


def _as_text(counts: Counter) -> str:
    return "  " + ", ".join(f"{n} {what}" for what, n in counts.items())


class Motions:
    """Motions and their packed poses.

    Args:
        motions: M of them, each with at least one frame.
        poses: (rows, 63) float32.
        problems: one line per file that cannot be used.
    """

    def __init__(self, motions: list[Motion], poses: np.ndarray, problems: Sequence[str] = ()):
        self.motions, self.poses, self.problems = motions, poses, list(problems)
        self.frames = np.array([m.frames for m in motions])  # (M,)
        self.row = np.array([m.row for m in motions])  # (M,)
        self.betas = np.array([m.betas for m in motions], np.float32)  # (M, 10)
        self.gender = np.array([m.gender for m in motions])  # (M,)

    def __len__(self) -> int:
        return len(self.motions)

    @classmethod
    def load(cls, folder: str | Path, cache: str | Path) -> Motions:
        """All motions of a folder. Their poses are packed into the folder `cache`; only new and changed files are read.

        Raises FileNotFoundError if there is no such folder, ValueError if none of its files can be used.
        """
        folder, cache = Path(folder), Path(cache)
        stamps = motion_files(folder)
        motions, poses = _read_cache(cache)
        if {motion.path: motion.stamp for motion in motions} != stamps:
            known = {motion.path: motion for motion in motions}
            packed = cache / f"poses_{hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]}.f32"
            motions, row = [], 0
            with whole_file(packed) as file:
                for name, stamp in tqdm(stamps.items(), desc=f"motions of {folder}", unit="file"):
                    motion = known.get(name)
                    if motion is not None and motion.stamp == stamp:
                        read = poses[motion.row : motion.row + motion.frames]
                    else:
                        motion, read = _read_or_refuse(folder, name, stamp)
                    file.write(np.ascontiguousarray(read))
                    motions.append(replace(motion, row=row))
                    row += motion.frames
            # The index comes last, since it names the file of its poses.
            write_json(cache / _INDEX, {"poses": packed.name, "motions": [asdict(motion) for motion in motions]})
            for old in cache.glob("poses_*.f32"):
                if old != packed:
                    old.unlink()
            motions, poses = _read_cache(cache)
        problems = [f"{folder / motion.path}: {motion.problem}" for motion in motions if motion.problem]
        if len(problems) == len(motions):
            raise ValueError("\n".join([f"None of the {len(motions)} files in {folder} can be used:", *problems[:5]]))
        return cls([motion for motion in motions if not motion.problem], poses, problems)

    @classmethod
    def of_annotations(cls, path: str | Path) -> Motions:
        """The bodies of an annotation file (3DPW, EMDB, …), each as a motion of one frame."""
        people = SMPLAnnotations.load(path)
        poses = people.pose[:, 1:].reshape(len(people), -1).astype(np.float32)  # without the root
        motions = [
            Motion(f"{path}, row {i}", _NEVER, 1, people.betas[i].tolist(), GENDERS.index(people.gender[i]), row=i)
            for i in range(len(people))
        ]
        return cls(motions, poses)

    def split(self, name: str, shares: Mapping[str, float]) -> Motions:
        """The motions of "train", "val" or "test". A file's split does not depend on the other files.

        Args:
            shares: fractions of the files for "val" and "test"; the rest is for training.

        Raises ValueError if the shares leave nothing for training, or the split is empty.
        """
        val, test = shares["val"], shares["test"]
        if min(val, test) < 0 or val + test >= 1:
            raise ValueError(f"data.shares: val={val} and test={test} must be 0 or more, and together less than 1.")
        bounds = {"val": (0, val), "test": (val, val + test), "train": (val + test, 1)}[name]
        chosen = [motion for motion in self.motions if bounds[0] <= _hash(motion.path) < bounds[1]]
        if not chosen:
            raise ValueError(
                f"None of the {len(self)} motions falls into the {name} split, with a share of "
                f"{bounds[1] - bounds[0]:g}: change data.shares, or give more motions."
            )
        return Motions(chosen, self.poses)


def _read_cache(cache: Path) -> tuple[list[Motion], np.ndarray]:
    """The motions that were packed before, and their poses; none if there is no usable cache."""
    try:
        index = json.loads((cache / _INDEX).read_bytes())
        motions = [Motion(**motion) for motion in index["motions"]]
        rows = sum(motion.frames for motion in motions)
        poses = np.memmap(cache / index["poses"], np.float32, "r") if rows else np.empty(0, np.float32)
        return motions, poses.reshape(rows, _N_POSE)
    except (OSError, ValueError, KeyError, TypeError):
        return [], np.empty((0, _N_POSE), np.float32)


def _read_or_refuse(folder: Path, name: str, stamp: list[int]) -> tuple[Motion, np.ndarray]:
    try:
        poses, betas, gender = read_motion(folder / name)
    except (ValueError, OSError) as error:
        stamp = _NEVER if isinstance(error, OSError) else stamp  # the disk's fault: try again the next time
        return Motion(name, stamp, 0, [0.0] * N_BETAS, 0, problem=str(error)), np.empty((0, _N_POSE), np.float32)
    return Motion(name, stamp, len(poses), betas.tolist(), gender), poses


class MotionDataset(Dataset):
    """Single frames of motions, without their root rotation.

    An item is {"pose": (21, 3) axis-angle, radians; "betas": (10,); "gender": index into GENDERS}.

    Args:
        frames_per_file: number of random frames of each motion (published: 1), drawn anew every epoch: each is a
            function of (seed, epoch, path). None takes one frame in `every` instead.
        every: take one frame in this many of each motion, and at least one. After `every` epochs all frames have been
            used; every epoch has the same number of frames.
        limit: maximum number of frames, spread evenly over all.

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
            drawn = [_hash(f"{seed}, {epoch}, {n}, {m.path}") for m in motions.motions for n in range(frames_per_file)]
            frame = (np.array(drawn) * motions.frames[motion]).astype(np.int64)
        else:
            every = every or 1
            counts = np.maximum(1, motions.frames // every)
            motion = np.repeat(np.arange(len(motions)), counts)
            nth = np.arange(len(motion)) - np.repeat(counts.cumsum() - counts, counts)
            # Only motions shorter than `every` need the modulus.
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
        # A copy, since the memory map is read-only.
        pose = np.array(self.motions.poses[self.motions.row[motion] + self.frame[index]])
        return {
            "pose": torch.from_numpy(pose).view(-1, 3),
            "betas": torch.from_numpy(self.motions.betas[motion]),
            "gender": int(self.motions.gender[motion]),
        }

    @property
    def place(self) -> np.ndarray:
        """(len,) index of each frame among all frames of the motions."""
        return (self.motions.frames.cumsum() - self.motions.frames)[self.motion] + self.frame

    def fingerprint(self, items: slice) -> str:
        """A hash of the content of some items."""
        motion, frame = self.motion[items], self.frame[items]
        digest = hashlib.sha256(np.ascontiguousarray(self.motions.poses[self.motions.row[motion] + frame]))
        digest.update(self.motions.betas[motion])
        digest.update(self.motions.gender[motion])
        return digest.hexdigest()[:16]


def _hash(text: str) -> float:
    """A number in [0, 1) from a hash of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
