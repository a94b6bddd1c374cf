"""Motion files: their check, their poses packed into one memory-mapped file, and single frames as a data set.

A motion file is `<any folders>/*.npz` with `poses` (T, >= 66) axis-angle, root first (72 numbers per frame in SMPL, 156
in SMPL-H, 165 in SMPL-X), `betas`, `gender` and perhaps its frame rate (`RATE_FIELDS`). Of the betas, the first 10 are
used, since the bodies here have 10; missing ones are 0. Files with `shape` in their path are not motions.

BEDLAM has about 2,300 motions with one to two million frames: 63 float32 numbers each are about 0.5 GB, which all
processes of a training share, and a random frame is one read of 252 bytes. Opening the motion files themselves would
take milliseconds per frame; float16 would save 0.25 GB and round an angle of two radians by up to 0.001.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mega.bodies.smplh import GENDERS, N_BETAS, SMPL_JOINTS, gender_name
from mega.data.smpl_annotations import SMPLAnnotations, stored_rotated
from mega.external_files import FILES, describe, require
from mega_common.files import as_text, read_arrays, whole_file, write_json

_N_POSE = 3 * len(SMPL_JOINTS)
_POSE = slice(3, 3 + _N_POSE)  # of a frame: after the root
#: Names of the frame rate in motion files: AMASS (SMPL-H), AMASS (SMPL-X) and BEDLAM, others.
RATE_FIELDS = ("mocap_framerate", "mocap_frame_rate", "fps")
_RATES = (1, 1000)  # frames per second; any other number is an error of the file
DEFAULT_FPS = 30.0  # of files without a rate: that of BEDLAM's animations
FRAMES_PER_SECOND = 30.0  # of an epoch
_INDEX = "index.json"
_FORMAT = 2  # of the packed motions: what is read of a motion file, and how; others are packed anew
_NAMED = 5  # files listed in a message
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
        fps: frames per second; None if the file does not give it.
        n_betas: number of betas in the file.
        problem: why the file cannot be used; empty if it can.
        row: index of the first frame in the packed poses.
    """

    path: str
    stamp: list[int]
    frames: int
    betas: list[float]
    gender: int
    fps: float | None = None
    n_betas: int = N_BETAS
    problem: str = ""
    row: int = 0


def find_motions(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of the motion files in a folder, and of the `.npz` files that are none by their name (`shape`), sorted.

    The paths are relative to the folder, with slashes. Linked folders are searched too.

    Raises OSError if a folder cannot be read.
    """
    found, seen = [], set()

    def stop(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        seen.add(os.path.realpath(parent))  # a link may lead back
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in seen]
        below = Path(parent).relative_to(folder)
        found += [below / name for name in names if name.lower().endswith(".npz")]
    paths = [path.as_posix() for path in sorted(found)]
    return [path for path in paths if "shape" not in path], [path for path in paths if "shape" in path]


def motion_files(folder: str | Path) -> dict[str, list[int]]:
    """{path relative to the folder: [size, modification time in ns]} of its motion files, sorted.

    Raises FileNotFoundError if there is no such folder, ValueError if it holds no motions.
    """
    folder = Path(folder)
    if not folder.is_dir():
        source = next(describe(file) for file in FILES if file.path == "datasets/bedlam_animations")
        raise FileNotFoundError(f"{folder} is missing: {source}. (python tools/check_setup.py lists every file.)")
    names, others = find_motions(folder)
    if not names:
        left_out = f" ({len(others)} have it: {_some(others)})" if others else ""
        raise ValueError(
            f"{folder} holds no motions: no *.npz files, at any depth, without `shape` in their path{left_out}."
        )
    stamps = {}
    for name in names:
        try:
            stat = (folder / name).stat()
            stamps[name] = [stat.st_size, stat.st_mtime_ns]
        except OSError:  # a dangling link: `read_motion` reports it
            stamps[name] = _NEVER
    return stamps


def read_motion(path: str | Path, check_unused: bool = False) -> tuple[np.ndarray, np.ndarray, int, float | None]:
    """(poses (T, 63) float32 without the root, all betas, index into GENDERS, frames per second or None) of a file.

    Args:
        check_unused: check what is not read as well: root, hands, and the translation `trans` (T, 3).

    Raises ValueError with everything that is wrong with the file, OSError if it cannot be opened.
    """
    names = ("poses", "betas", "gender", *RATE_FIELDS, *(["trans"] if check_unused else []))
    try:
        arrays = read_arrays(Path(path), names)
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise ValueError(str(error).removeprefix(f"{path} ")) from error
    rates = {name: arrays.pop(name) for name in RATE_FIELDS if name in arrays}
    wrong = [f"lacks {name}" for name in ("poses", "betas", "gender") if name not in arrays]
    poses, betas, gender = (arrays.get(name) for name in ("poses", "betas", "gender"))
    frames = len(poses) if poses is not None and poses.ndim else 0
    if poses is not None and not frames:
        wrong.append("poses holds no frames")
    # The least shape of each array, of which only the last axis may be longer, and what of this axis must be finite.
    expected = {"poses": ((frames, _POSE.stop), slice(None) if check_unused else _POSE)}
    expected |= {"betas": ((1,), slice(N_BETAS)), "trans": ((frames, 3), slice(None))}
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
            gender = GENDERS.index(gender_name(_single(gender, "gender", "word")))
        except ValueError as error:
            wrong.append(str(error).rstrip("."))
    fps = None
    try:
        fps = _frame_rate(rates)
    except ValueError as error:
        wrong.append(str(error))
    if wrong:
        raise ValueError("; ".join(wrong))
    return poses[:, _POSE].astype(np.float32), betas.astype(np.float32), gender, fps


def _single(array: np.ndarray, name: str, kind: str) -> str:
    """The text of an array of one element. Raises ValueError if it has more or fewer."""
    if array.size != 1:
        raise ValueError(f"{name} has shape {array.shape}, expected one {kind}")
    return str(as_text(array).item())


def _frame_rate(rates: Mapping[str, np.ndarray]) -> float | None:
    """The frame rate that a file's fields agree on; None without fields. Raises ValueError if it makes no sense."""
    fps = None
    for name, array in rates.items():
        text = _single(array, name, "number")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not _RATES[0] <= value <= _RATES[1]:  # NaN neither
            raise ValueError(f"{name} is {text}, expected {_RATES[0]} to {_RATES[1]} frames per second")
        if fps not in (None, value):
            raise ValueError(f"{' and '.join(rates)} differ: {fps:g} and {value:g} frames per second")
        fps = value
    return fps


def _some(names: Sequence[str]) -> str:
    """The first of the names."""
    return ", ".join([*names[:_NAMED], *(["…"] if len(names) > _NAMED else [])])


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
        files, others = sorted(folder.rglob("*.npz")) if folder.is_dir() else [folder], []
        if place is animations and folder.is_dir():
            names, left_out = find_motions(folder)
            files, others = ([folder / name for name in group] for group in (names, left_out))
            results |= {str(file): "not a motion, its path holds `shape`" for file in others}
        if not files + others:
            raise FileNotFoundError(f"There are no .npz files in {folder}.")
        totals, wrong = Counter(), []
        for file in tqdm(files, desc=place, unit="file"):
            try:
                counts = _count_frames(file) if place is animations else _count_people(file)
            except (OSError, ValueError) as error:
                results[str(file)] = "wrong: " + str(error).removeprefix(f"{file}: ").removeprefix(f"{file} ")
                wrong.append(file)
            else:
                results[str(file)] = _listed(counts)
                totals += counts
        fine, n_files = len(files) - len(wrong), len(files) + len(others)
        print(f"{place}: {n_files} files, {fine} fine, {len(others)} not motions, {len(wrong)} wrong")
        print(_listed(totals), *(f"  {file}: {results[str(file)]}" for file in others + wrong), sep="\n")
        n_wrong += len(wrong)
    if report is not None:
        write_json(report, {"wrong": n_wrong, "files": results})
    return n_wrong


def _count_frames(file: Path) -> Counter:
    poses, betas, gender, fps = read_motion(file, check_unused=True)
    rate = "without a frame rate" if fps is None else f"at {fps:g} frames per second"
    return Counter({"frames": len(poses), GENDERS[gender]: 1, f"with {len(betas)} betas": 1, rate: 1})


def _count_people(file: Path) -> Counter:
    people = SMPLAnnotations.load(file, also=_UNUSED)
    rotated = sum(map(partial(stored_rotated, file.parent), people.imgname.tolist()))
    counts = Counter({"people": len(people), "in pictures stored rotated (closeup)": rotated})
    return counts + Counter(people.gender.tolist())


def _listed(counts: Counter) -> str:
    return "  " + ", ".join(f"{n} {what}" for what, n in counts.items())


class Motions:
    """Motions and their packed poses.

    Args:
        motions: M of them, each with at least one frame.
        poses: (rows, 63) float32.
        problems: one line per file that cannot be used.
        notes: lines on what was assumed and left out.
        default_fps: frames per second of motions that do not give it.
    """

    def __init__(
        self,
        motions: list[Motion],
        poses: np.ndarray,
        problems: Sequence[str] = (),
        notes: Sequence[str] = (),
        default_fps: float = DEFAULT_FPS,
    ):
        self.motions, self.poses, self.problems, self.notes = motions, poses, list(problems), list(notes)
        self.default_fps = default_fps
        self.fps = np.array([default_fps if m.fps is None else m.fps for m in motions])  # (M,)
        self.frames = np.array([m.frames for m in motions])  # (M,)
        self.row = np.array([m.row for m in motions])  # (M,)
        self.betas = np.array([m.betas for m in motions], np.float32)  # (M, 10)
        self.gender = np.array([m.gender for m in motions])  # (M,)

    def __len__(self) -> int:
        return len(self.motions)

    @classmethod
    def load(cls, folder: str | Path, cache: str | Path, default_fps: float = DEFAULT_FPS) -> Motions:
        """All motions of a folder. Their poses are packed into the folder `cache`; only new and changed files are read.

        Raises FileNotFoundError if there is no such folder, ValueError if none of its files can be used or if
        `default_fps` makes no sense.
        """
        if not _RATES[0] <= default_fps <= _RATES[1]:
            raise ValueError(f"data.default_fps={default_fps}: give {_RATES[0]} to {_RATES[1]} frames per second.")
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
            index = {"format": _FORMAT, "poses": packed.name, "motions": [asdict(motion) for motion in motions]}
            write_json(cache / _INDEX, index)
            for old in cache.glob("poses_*.f32"):
                if old != packed:
                    old.unlink()
            motions, poses = _read_cache(cache)
        problems = [f"{folder / motion.path}: {motion.problem}" for motion in motions if motion.problem]
        if len(problems) == len(motions):
            raise ValueError("\n".join([f"None of the {len(motions)} files in {folder} can be used:", *problems[:5]]))
        used = [motion for motion in motions if not motion.problem]
        return cls(used, poses, problems, _notes(folder, used, default_fps), default_fps)

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
        return Motions(chosen, self.poses, default_fps=self.default_fps)


def _notes(folder: Path, motions: Sequence[Motion], default_fps: float) -> list[str]:
    """What a user should know of the motions of a folder, in a few lines; `check_bedlam` lists every file."""
    rates = Counter(motion.fps for motion in motions if motion.fps is not None)
    without = [motion.path for motion in motions if motion.fps is None]
    surplus = Counter(motion.n_betas for motion in motions if motion.n_betas > N_BETAS)
    short = [motion.path for motion in motions if motion.n_betas < N_BETAS]
    left_out = find_motions(folder)[1]
    lines = [f"{len(motions)} motions in {folder}; frames per second (files): {_numbers(rates) or 'not given'}"]
    if without:
        lines += [
            f"{len(without)} of them do not give their frame rate ({', '.join(RATE_FIELDS)}): "
            f"data.default_fps={default_fps:g} is assumed: {_some(without)}"
        ]
    if surplus:
        lines += [f"betas (files): {_numbers(surplus)}; the first {N_BETAS} are used, as many as the body has"]
    if short:
        lines += [f"{len(short)} of them have fewer than {N_BETAS} betas, the others are taken as 0: {_some(short)}"]
    if left_out:
        lines += [
            f"{len(left_out)} .npz files are left out because their path holds `shape`: {_some(left_out)} "
            f"(all: python tools/prepare_data.py bedlam_check dataset.animations={folder})"
        ]
    return lines


def _numbers(counts: Counter) -> str:
    return ", ".join(f"{number:g} ({counts[number]})" for number in sorted(counts))


def _read_cache(cache: Path) -> tuple[list[Motion], np.ndarray]:
    """The motions that were packed before, and their poses; none if there is no usable cache."""
    try:
        index = json.loads((cache / _INDEX).read_bytes())
        if index["format"] != _FORMAT:
            raise ValueError("packed by another version")
        motions = [Motion(**motion) for motion in index["motions"]]
        rows = sum(motion.frames for motion in motions)
        poses = np.memmap(cache / index["poses"], np.float32, "r") if rows else np.empty(0, np.float32)
        return motions, poses.reshape(rows, _N_POSE)
    except (OSError, ValueError, KeyError, TypeError):
        return [], np.empty((0, _N_POSE), np.float32)


def _read_or_refuse(folder: Path, name: str, stamp: list[int]) -> tuple[Motion, np.ndarray]:
    try:
        poses, betas, gender, fps = read_motion(folder / name)
    except (ValueError, OSError) as error:
        stamp = _NEVER if isinstance(error, OSError) else stamp  # the disk's fault: try again the next time
        return Motion(name, stamp, 0, [0.0] * N_BETAS, 0, problem=str(error)), np.empty((0, _N_POSE), np.float32)
    used = np.pad(betas[:N_BETAS], (0, max(0, N_BETAS - len(betas))))
    return Motion(name, stamp, len(poses), used.tolist(), gender, fps, len(betas)), poses


class MotionDataset(Dataset):
    """Single frames of motions, without their root rotation.

    An item is {"pose": (21, 3) axis-angle, radians; "betas": (10,); "gender": index into GENDERS}.

    Args:
        frames_per_file: number of random frames of each motion (published: 1), drawn anew every epoch: each is a
            function of the seed, the epoch and the file. Every frame can be drawn, whatever the motion's frame rate.
        frames_per_second: without `frames_per_file`, motions are thinned to this rate, and each gives at least one
            frame; a motion with fewer frames per second gives all it has, and infinity takes all frames of all motions.
            None: 30. Each epoch takes the next frame of each interval, so that over the epochs all frames are used;
            every epoch has the same number of frames.
        limit: maximum number of frames, spread evenly over all.

    Raises ValueError if `frames_per_file` is not 1 or more, `frames_per_second` not above 0, or both are given.
    """

    def __init__(
        self,
        motions: Motions,
        frames_per_file: int | None = None,
        frames_per_second: float | None = None,
        epoch: int = 0,
        limit: int | None = None,
        seed: int = 0,
    ):
        check_frame_options(frames_per_file, frames_per_second)
        self.motions = motions
        if frames_per_file is not None:
            motion = np.repeat(np.arange(len(motions)), frames_per_file)
            drawn = [_hash(f"{seed}, {epoch}, {n}, {m.path}") for m in motions.motions for n in range(frames_per_file)]
            frame = (np.array(drawn) * motions.frames[motion]).astype(np.int64)
        else:
            step = np.maximum(1, motions.fps / (frames_per_second or FRAMES_PER_SECOND))  # frames, not always whole
            counts = np.maximum(1, _whole(motions.frames / step))
            motion = np.repeat(np.arange(len(motions)), counts)
            nth = np.arange(len(motion)) - np.repeat(counts.cumsum() - counts, counts)
            first, end = _whole(nth * step[motion]), _whole((nth + 1) * step[motion])
            # Only motions shorter than a step need the minimum.
            frame = first + epoch % (np.minimum(end, motions.frames[motion]) - first)
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


def check_frame_options(frames_per_file: int | None, frames_per_second: float | None) -> None:
    """Raise ValueError for options that `MotionDataset` cannot use."""
    if frames_per_file is not None and frames_per_second is not None:
        raise ValueError(
            f"data.frames_per_file={frames_per_file} and data.frames_per_second={frames_per_second} exclude each "
            "other: set one to null."
        )
    if frames_per_file is not None and frames_per_file < 1:
        raise ValueError(f"data.frames_per_file={frames_per_file}: give 1 or more.")
    if frames_per_second is not None and not frames_per_second > 0:  # NaN neither
        raise ValueError(f"data.frames_per_second={frames_per_second}: give a number above 0.")


def _whole(numbers: np.ndarray) -> np.ndarray:
    """The numbers rounded down, apart from rounding errors."""
    return np.floor(numbers + 1e-6).astype(np.int64)


def _hash(text: str) -> float:
    """A number in [0, 1) from a hash of the text, which may be a file name of any encoding."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48
