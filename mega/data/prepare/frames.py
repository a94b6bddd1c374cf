"""One table of people in frames, from the raw file to the annotation file and a report of what was kept.

Everything that belongs to one person in one picture is one row from the start, and only whole rows are selected. So
picture, pose and validity cannot be shifted against one another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import roma
import torch
from tqdm import tqdm

from mega.bodies.smplh import gender_name
from mega_common.files import write_json, write_npz

SIDE_UNIT = 200  # px, the unit of `scale`
FORMAT_VERSION = 2  # of the files; in those without a number, 3DPW's boxes are 12 % too wide
_LETTERS = {"male": "m", "female": "f", "neutral": "neutral"}


@dataclass(frozen=True)
class Frames:
    """F rows, each one person in one picture. Pixels are the picture's; metres; axis-angle in radians.

    Attributes:
        sequence: (F,) name.
        person: (F,) index in the sequence.
        frame: (F,) index in the sequence, from 0.
        imgname: (F,) path of the picture, relative to the project.
        gender: (F,) m, f or neutral.
        center: (F, 2) px, of the box.
        side: (F,) px, of the square box.
        root_orient: (F, 3) in the camera frame.
        pose_body: (F, >= 63) SMPL's joints, root left out.
        betas: (F, 10).
        trans: (F, 3) SMPL's translation in the world frame.
        j2d: (F, 24, 3) px and confidence, SMPL's joints.
        cam_int: (F, 3, 3) intrinsics, px.
        cam_ext: (F, 4, 4) world -> camera.
        trans_cam: (F, 3) SMPL's translation in the camera frame, None if unknown.
        reason: (F,) why the row is not used; empty if it is.

    Raises ValueError if the columns differ in length.
    """

    sequence: np.ndarray
    person: np.ndarray
    frame: np.ndarray
    imgname: np.ndarray
    gender: np.ndarray
    center: np.ndarray
    side: np.ndarray
    root_orient: np.ndarray
    pose_body: np.ndarray
    betas: np.ndarray
    trans: np.ndarray
    j2d: np.ndarray
    cam_int: np.ndarray
    cam_ext: np.ndarray
    reason: np.ndarray
    trans_cam: np.ndarray | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns().items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The columns of a table of frames differ in length: {lengths}.")

    def __len__(self) -> int:
        return len(self.frame)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that are known, by name."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: column for name, column in named.items() if column is not None}

    def skip(self, rows: np.ndarray, reason: str) -> Frames:
        """The same table, with this reason for those of `rows` (F,) bool that have none yet."""
        return replace(self, reason=np.where(rows & (self.reason == ""), reason, self.reason))

    def skip_not_finite(self) -> Frames:
        """The same table, with a reason for rows that are not finite."""
        numbers = [c.reshape(len(self), -1) for c in self.columns().values() if c.dtype.kind == "f"]
        return self.skip(~np.isfinite(np.concatenate(numbers, axis=1)).all(axis=1), "not finite")

    def used(self) -> Frames:
        """The rows without a reason."""
        rows = self.reason == ""
        return Frames(**{name: column[rows] for name, column in self.columns().items()})

    def annotations(self) -> dict[str, np.ndarray]:
        """The columns of an annotation file in the form of the tests: `scale` is stored inverted, 200 / side."""
        columns = self.columns()
        del columns["reason"]
        return columns | {"scale": SIDE_UNIT / columns.pop("side"), "format_version": np.array(FORMAT_VERSION)}


def joined(tables: Sequence[Frames]) -> Frames:
    """One table of all rows. The tables, at least one, have the same columns."""
    names = tables[0].columns()
    return Frames(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})


def gender_letter(gender: str | bytes) -> str:
    """m, f or neutral, from any spelling; raises ValueError for anything else."""
    return _LETTERS[gender_name(gender.decode() if isinstance(gender, bytes) else gender)]


def repeated(value: object, n: int) -> np.ndarray:
    """(n, ...): a value of the whole sequence, once for each of its frames."""
    return np.repeat(np.asarray(value)[None], n, axis=0)


_TOLERANCE = 1e-2


def is_rigid(cam_ext: np.ndarray) -> np.ndarray:
    """(N,) whether (N, 4, 4) world -> camera are a rotation and a shift; invalid cameras often are not."""
    rotation = cam_ext[:, :3, :3]
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
        upright = np.linalg.det(rotation) > 0
    return np.isfinite(cam_ext).all(axis=(1, 2)) & (off < _TOLERANCE) & upright


def turn_to_camera(root_orient: np.ndarray, cam_ext: np.ndarray) -> np.ndarray:
    """Axis-angle (N, 3) of the root in the world -> in the camera frame, R @ root."""
    root = roma.rotvec_to_rotmat(torch.from_numpy(root_orient))
    return roma.rotmat_to_rotvec(torch.from_numpy(cam_ext[:, :3, :3].copy()) @ root).numpy()


def world_to_camera(points: np.ndarray, cam_ext: np.ndarray) -> np.ndarray:
    """Points (N, J, 3) of the world -> the camera frame."""
    return points @ cam_ext[:, :3, :3].transpose(0, 2, 1) + cam_ext[:, None, :3, 3]


def project(points: np.ndarray, cam_int: np.ndarray) -> np.ndarray:
    """Points (N, J, 3) of the camera frame -> (N, J, 2) px; NaN for points behind the camera."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
        return (points / ahead @ cam_int.transpose(0, 2, 1))[..., :2]


NO_PICTURE = "missing picture"


@dataclass
class Report:
    """How many people were kept, and why the others were not.

    Attributes:
        sequences: {name: {"kept": rows, reason: rows, …}}.
        problems: one line each, with the name of its file.
    """

    sequences: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, frames: Frames) -> None:
        """Count the rows of a sequence by their reason."""
        reasons = Counter(reason or "kept" for reason in frames.reason.tolist())
        self.sequences[name] = {"kept": reasons.pop("kept", 0), **dict(reasons.most_common())}

    def totals(self) -> dict[str, int]:
        """Numbers of rows over all sequences, "kept" first."""
        totals = Counter(kept=0)
        for counts in self.sequences.values():
            totals.update(counts)
        return dict(totals)

    def lines(self) -> list[str]:
        """One line per sequence."""
        width = max(map(len, self.sequences), default=0)
        return [f"  {name:<{width}}  {_as_text(counts)}" for name, counts in self.sequences.items()]


def _as_text(counts: dict[str, int]) -> str:
    kept, *others = [f"{n} {what}" for what, n in counts.items()]
    return f"{kept}, skipped: {', '.join(others)}" if others else kept


def annotate(files: Sequence[Path], read: Callable[[Path], tuple[str, Frames]], output: Path) -> int:
    """Read every sequence, write `output` (.npz) and a `*_report.json` next to it, and print what was kept.

    Unreadable sequences are reported and skipped.

    Args:
        read: file -> name of the sequence and its table.

    Returns the number of problems: unreadable files, sequences with missing pictures, nothing to write.
    """
    report, tables = Report(), []
    for file in tqdm(files, desc=output.stem, unit="sequence"):
        try:
            name, frames = read(file)
        except (OSError, ValueError) as error:
            report.problems.append(str(error))
            continue
        report.add(name, frames)
        absent = frames.imgname[frames.reason == NO_PICTURE]
        if len(absent):
            report.problems.append(f"{file}: {len(absent)} pictures are missing, the first is {absent[0]}.")
        tables.append(frames.used())
    if report.totals()["kept"]:
        write_npz(output, joined(tables).annotations())
    else:
        report.problems.append(f"{output} is not written: no frame can be used.")
    summary = {"kept": report.totals(), "sequences": report.sequences, "problems": report.problems}
    write_json(output.with_name(f"{output.stem}_report.json"), summary)
    print(*report.lines(), f"{output}: {_as_text(report.totals())}", *report.problems, sep="\n")
    return len(report.problems)


def skip_missing_pictures(frames: Frames) -> Frames:
    """The same table, with a reason for rows whose picture is missing. Each folder is listed once."""
    folders = {Path(name).parent for name in frames.imgname.tolist()}
    there = {str(file) for folder in folders if folder.is_dir() for file in folder.iterdir()}
    return frames.skip(np.array([str(Path(name)) not in there for name in frames.imgname.tolist()]), NO_PICTURE)
