"""SMPL annotation files that users hold, in both published forms, as one typed table.

real images (COCO, MPII, H36M, MPI-INF-3DHP)      tests (3DPW, EMDB)
pose_cam or pose (P, >= 66)                        root_orient (P, 3), pose_body (P, >= 63)
shape or betas                                     betas
part (P, >= 24, 3)                                 j2d (P, 24, 3)
scale: box = 200 * scale px                        scale stored inverted: box = 200 / scale px
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np

from mega.bodies.smplh import gender_name
from mega.data.synthetic_images import read_rgb
from mega.external_files import require
from mega_common.files import as_names, as_text, read_arrays

log = logging.getLogger(__name__)

N_BETAS, N_POSED = 10, 22  # the root and 21 joints
_NAMED = 5  # bad rows listed in a message
_FIELDS = (
    *("imgname", "center", "scale", "gender", "betas", "shape", "j2d", "part"),
    *("pose_cam", "pose", "root_orient", "pose_body"),
)
# Written by `prepare_data.py 3dpw` and not in the published files; `trans_cam` is not in EMDB's files.
_OF_3DPW = {"sequence", "person", "frame", "cam_ext", "trans_cam"}


@dataclass(frozen=True)
class SMPLAnnotations:
    """P people in pictures; rotations are those of the picture's camera frame.

    Attributes:
        row: (P,) index in the file.
        imgname: (P,) path of the picture with slashes, relative to a folder that the user chooses.
        center: (P, 2) px.
        scale: (P,) the box is a square of 200 * scale px, whatever the convention of the file.
        pose: (P, 22, 3) axis-angle of SMPL's joints, root first.
        betas: (P, 10).
        gender: (P,) neutral, male or female.
        keypoints2d: (P, 24, 3) px and, of `part`, confidence. The third column of `j2d` is not a confidence:
            published files have the depth there.
        smpl_joints: whether the 24 keypoints are SMPL's joints (tests) or those of `part` (real images).
        problem: which rows of the file were left out, and why; empty if none.
    """

    row: np.ndarray
    imgname: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    pose: np.ndarray
    betas: np.ndarray
    gender: np.ndarray
    keypoints2d: np.ndarray
    smpl_joints: bool
    problem: str = ""

    def __len__(self) -> int:
        return len(self.imgname)

    def picture_root(self, places: Sequence[Path]) -> Path:
        """The first of these folders that holds a picture of the table; the first of all if none does.

        The first 100 rows are tried, since training tolerates missing pictures.
        """
        names = self.imgname[:100].tolist()
        return next((place for place in places if any((place / name).is_file() for name in names)), places[0])

    def select(self, rows: np.ndarray | slice) -> SMPLAnnotations:
        """The table of these rows."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("smpl_joints", "problem")}
        return replace(self, **{name: column[rows] for name, column in columns.items()})

    @classmethod
    def load(cls, path: str | Path, skip_bad_rows: bool = False, also: Sequence[str] | None = None) -> SMPLAnnotations:
        """Read a file of either form.

        A row is bad if one of its numbers is not finite, its scale is not above 0, or its gender is unknown.

        Args:
            skip_bad_rows: leave out bad rows with one warning, for training. By default they are errors, since a test
                on fewer people is a different test.
            also: more fields to check, each with one finite row per person; keypoints may then be missing.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if fields are missing, too short or of different lengths, for bad rows, and if no row is left;
                names the file and everything that is wrong.
        """
        require(path)
        file = _Fields(read_arrays(Path(path), (*_FIELDS, *(also or ()))))
        _refuse_old_boxes(Path(path))
        if not file.people:
            raise ValueError(f"{path} holds no rows.")
        have, is_test = file.columns.keys(), "j2d" in file.columns
        scale = file.read("scale")
        for row in np.flatnonzero(scale <= 0).tolist():
            file.mark(row, "scale", f"scale is {scale[row]}, it must be above 0")
        scale = np.where(scale > 0, scale, np.nan)
        if {"root_orient", "pose_body"} <= have and not {"pose_cam", "pose"} & have:
            pose = np.hstack([file.read("root_orient", row=(3,)), file.read("pose_body", row=(3 * N_POSED - 3,))])
        else:
            pose = file.read("pose_cam", "pose", "root_orient and pose_body", row=(3 * N_POSED,))
        keypoints = np.zeros((file.people, 24, 3))
        if also is None or {"j2d", "part"} & have:
            keypoints = file.read("j2d", "part", row=(24, 3))
        for name in also or ():
            if name in have:
                file.read(name, row=file.columns[name].shape[1:])
        genders = []
        for row, gender in enumerate(file.read("gender", dtype=str) if "gender" in have else ["neutral"] * file.people):
            try:
                genders.append(gender_name(gender))
            except ValueError as error:
                file.mark(row, "gender", str(error).rstrip("."))
                genders.append("")
        table = cls(
            row=np.arange(file.people),
            imgname=as_names(file.read("imgname", dtype=str)),
            center=file.read("center", row=(2,)),
            scale=1 / scale if is_test else scale,
            pose=pose.reshape(-1, N_POSED, 3),
            betas=file.read("betas", "shape", row=(N_BETAS,)),
            gender=np.array(genders),
            keypoints2d=keypoints,
            smpl_joints=is_test,
        )
        problem = ""
        if file.bad:
            named = [
                f"row {row} ({table.imgname[row]}): {', '.join(reasons.values())}"
                for row, reasons in sorted(file.bad.items())
            ]
            if len(named) > _NAMED:
                counts = Counter(field for reasons in file.bad.values() for field in reasons)
                named[_NAMED:] = [f"… (by field: {', '.join(f'{field} {n}' for field, n in counts.items())})"]
            problem = f"{path}: {len(file.bad)} of {file.people} rows cannot be used: {'; '.join(named)}."
        if file.faults:
            raise ValueError(f"{path}: {'; '.join(file.faults)}. {problem}".rstrip())
        if not problem:
            return table
        if not skip_bad_rows:
            raise ValueError(f"{problem} Correct them: a test needs every row.")
        if len(file.bad) == file.people:
            raise ValueError(f"{problem} None is left to train on.")
        log.warning("%s They are left out.", problem)
        return replace(table.select(np.setdiff1d(table.row, list(file.bad))), problem=problem)


def first_existing(paths: Sequence[str | Path]) -> Path | None:
    """The first of these files that exists."""
    return next((Path(path) for path in paths if Path(path).is_file()), None)


def read_smpl_picture(root: Path, imgname: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB below `root`.

    Those that are `stored_rotated` are turned clockwise.
    """
    image = read_rgb(root / imgname)
    return cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE) if stored_rotated(root, imgname) else image


def stored_rotated(root: Path, imgname: str) -> bool:
    """Whether a picture is stored rotated by 90 degrees: `closeup` is in `imgname`; folders on the way do not count.

    Of an absolute `imgname`, what it has in common with the path of `root` is such a way.
    """
    return "closeup" in (os.path.relpath(imgname, root) if os.path.isabs(imgname) else imgname)


class _Fields:
    """The fields of a file, and everything that turns out to be wrong with them as they are read.

    Attributes:
        people: number of rows.
        faults: what is wrong with whole fields; 1 or "neutral" stands for their values.
        bad: {row: {field: reason}}.
    """

    def __init__(self, columns: dict[str, np.ndarray]):
        self.columns, self.faults, self.bad = columns, [], {}
        lengths = [len(column) for column in columns.values() if column.ndim]
        self.people = columns["imgname"].size if "imgname" in columns else max(lengths, default=0)

    def read(self, *names: str, row: tuple[int, ...] = (), dtype: type = float) -> np.ndarray:
        """(P, *row): the first of these fields that there is, cut to this shape."""
        placeholder = np.full((self.people, *row), "neutral" if dtype is str else 1.0)
        name = next((name for name in names if name in self.columns), None)
        if name is None:
            self.faults.append(f"lacks the field {' or '.join(names)}")
            return placeholder
        try:
            column = self.columns[name]
            column = as_text(column) if dtype is str else column.astype(dtype)
        except ValueError as error:
            self.faults.append(f"the field {name} holds no {'text' if dtype is str else 'numbers'}: {error}")
            return placeholder
        if not row and column.shape[1:] == (1,):
            column = column[:, 0]
        if (
            column.ndim != placeholder.ndim
            or len(column) != self.people
            or (np.array(column.shape) < placeholder.shape).any()
        ):
            expected = f"{placeholder.shape} or more for {self.people} imgnames"
            self.faults.append(f"the field {name} has shape {column.shape}, expected {expected}")
            return placeholder
        column = column[tuple(map(slice, placeholder.shape))]
        if dtype is float:
            for bad in np.flatnonzero(~np.isfinite(column.reshape(self.people, -1)).all(axis=1)).tolist():
                self.mark(bad, name, f"{name} is not finite")
        return column

    def mark(self, row: int, field: str, reason: str) -> None:
        """Note why a row is bad."""
        self.bad.setdefault(row, {})[field] = reason


def _refuse_old_boxes(path: Path) -> None:
    """Raise ValueError, with the command to make it again, if an earlier `prepare_data.py 3dpw` wrote the file."""
    with np.load(path, allow_pickle=False) as file:
        if not set(file.files) >= _OF_3DPW or "format_version" in file.files:
            return
    sequences = np.unique(read_arrays(path, ("sequence",))["sequence"]).tolist()
    split = path.stem.removeprefix("3dpw_")
    chosen = f"'dataset.splits=[{split}]'"
    if split not in ("train", "validation", "test"):
        chosen = f"'dataset.sequences=[{','.join(sequences)}]' dataset.subset={path.stem}"
    folder = "" if path.parent == Path("datasets/3dpw") else f" dataset.folder={path.parent}"
    raise ValueError(
        f"{path} was made by an earlier version of prepare_data.py, whose boxes for 3DPW were 12 % too wide. "
        f"Make it again: python tools/prepare_data.py 3dpw {chosen}{folder}"
    )
