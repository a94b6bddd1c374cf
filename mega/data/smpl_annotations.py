"""SMPL annotation files that users hold, in both published forms, as one typed table.

real images (COCO, MPII, H36M, MPI-INF-3DHP)      tests (3DPW, EMDB)
pose_cam or pose (P, >= 66)                        root_orient (P, 3), pose_body (P, >= 63)
shape or betas                                     betas
part (P, >= 24, 3)                                 j2d (P, 24, 3)
scale: box = 200 * scale px                        scale stored inverted: box = 200 / scale px
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np

from mega.bodies.smplh import gender_name
from mega.data.prepare.threedpw import SPLITS
from mega.data.synthetic_images import read_rgb
from mega.external_files import require
from mega_common.files import read_arrays

log = logging.getLogger(__name__)

N_BETAS, N_POSED = 10, 22  # the root and 21 joints
_NAMED = 5  # bad rows listed in a message
_FIELDS = (
    *("imgname", "center", "scale", "gender", "pose_cam", "pose", "root_orient", "pose_body", "shape", "betas"),
    *("part", "j2d"),
)
# Written by `prepare_data.py 3dpw` and not in the published files; `trans_cam` is not in EMDB's files.
_OF_3DPW = {"sequence", "person", "frame", "cam_ext", "trans_cam"}


@dataclass(frozen=True)
class SMPLAnnotations:
    """P people in pictures; rotations are those of the picture's camera frame.

    Attributes:
        row: (P,) index in the file.
        imgname: (P,) path of the picture, relative to a folder that the user chooses.
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
        file = _File(Path(path), also)
        is_test = "j2d" in file.columns
        if {"pose_cam", "pose"} & file.columns.keys():
            pose = file.numbers(("pose_cam", "pose"), 3 * N_POSED)
        else:
            root = file.numbers(("root_orient",), 3)
            pose = np.concatenate([root, file.numbers(("pose_body",), 3 * (N_POSED - 1))], axis=1)
        scale = file.scale()
        table = cls(
            row=np.arange(file.people),
            imgname=np.asarray(file.columns.get("imgname", np.full(file.people, ""))).astype(str),
            center=file.numbers(("center",), 2),
            scale=1 / scale if is_test else scale,
            pose=pose.reshape(file.people, N_POSED, 3),
            betas=file.numbers(("betas", "shape"), N_BETAS),
            gender=file.genders(),
            keypoints2d=file.numbers(("j2d", "part"), 24, 3),
            smpl_joints=is_test,
        )
        problem = _describe(file, table.imgname) if file.bad else ""
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


def read_smpl_picture(root: Path, imgname: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB below `root`.

    Pictures with `closeup` in `imgname` are stored rotated and are turned clockwise; names in `root` do not count.
    """
    image = read_rgb(root / imgname)
    return cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE) if "closeup" in imgname else image


def _describe(file: _File, imgname: np.ndarray) -> str:
    named = [f"row {row} ({imgname[row]}): {', '.join(why)}" for row, why in sorted(file.bad.items())[:_NAMED]]
    if len(file.bad) > _NAMED:
        named.append(f"… (by field: {', '.join(f'{name} {n}' for name, n in file.bad_fields.items())})")
    return f"{file.path}: {len(file.bad)} of {file.people} rows cannot be used: {'; '.join(named)}."


class _File:
    """The arrays of a file and what is wrong with them; `also` as in `SMPLAnnotations.load`.

    Attributes:
        columns: the arrays, without those of another length.
        faults: what is wrong with whole fields; a placeholder stands for such a field.
        bad: {row: reasons}; bad_fields: {field: number of bad rows}. Both are filled as the fields are read.
    """

    def __init__(self, path: Path, also: Sequence[str] | None):
        require(path)
        self.path, self.bad, self.bad_fields = path, {}, {}
        columns = read_arrays(path, (*_FIELDS, *(also or ())))
        _refuse_old_boxes(path)
        required = [("imgname",), ("center",), ("scale",), ("part", "j2d"), ("shape", "betas")]
        if also is not None:
            required.remove(("part", "j2d"))
        self.faults = [f"lacks the field {' or '.join(c)}" for c in required if not set(c) & columns.keys()]
        if not ({"pose_cam", "pose"} & columns.keys() or {"root_orient", "pose_body"} <= columns.keys()):
            self.faults.append("lacks a pose: pose_cam, pose, or root_orient and pose_body")
        lengths = [len(column) for column in columns.values() if column.ndim]
        self.people = columns["imgname"].size if "imgname" in columns else max(lengths, default=0)
        if not self.people:
            raise ValueError(f"{path} holds no rows.")
        others = {name: c.shape for name, c in columns.items() if c.shape[:1] != (self.people,)}
        if others:
            listed = ", ".join(f"{name} has shape {shape}" for name, shape in others.items())
            self.faults.append(f"there are {self.people} imgnames, but {listed}")
        self.columns = {name: column for name, column in columns.items() if name not in others}
        for name in also or ():
            if name in self.columns and self.columns[name].dtype.kind == "f":
                self._mark_not_finite(name, self.columns[name])

    def numbers(self, names: tuple[str, ...], *lengths: int) -> np.ndarray:
        """The first of `names` that the file has, as float64, its axes after the first cut to `lengths`."""
        name = next((n for n in names if n in self.columns), None)
        placeholder = np.zeros((self.people, *lengths))
        column = None if name is None else self._as_numbers(name)
        if column is None:
            return placeholder
        fits = column.ndim == 1 + len(lengths) and all(
            have >= want for have, want in zip(column.shape[1:], lengths, strict=True)
        )
        if not fits:
            wanted = ", ".join(map(str, lengths))
            self.faults.append(f"the field {name} has shape {column.shape}, expected (P, {wanted}) or more")
            return placeholder
        column = column[(slice(None), *map(slice, lengths))]
        self._mark_not_finite(name, column)
        return column

    def scale(self) -> np.ndarray:
        """(P,) as stored, NaN where it is bad."""
        column = self._as_numbers("scale") if "scale" in self.columns else None
        if column is None:
            return np.ones(self.people)
        scale = column.reshape(self.people, -1)[:, 0]
        bad = ~(np.isfinite(scale) & (scale > 0))
        self._mark("scale", bad, lambda row: f"scale is {scale[row]}, it must be above 0")
        return np.where(bad, np.nan, scale)

    def genders(self) -> np.ndarray:
        """(P,) names; bad ones are empty."""
        if "gender" not in self.columns:
            return np.full(self.people, "neutral")
        try:
            column = self.columns["gender"].reshape(self.people, -1)[:, 0].astype(str)
        except UnicodeDecodeError as error:
            self.faults.append(f"the field gender holds no text: {error}")
            return np.full(self.people, "")
        names = dict.fromkeys(np.unique(column), "")
        for spelling in names:
            try:
                names[spelling] = gender_name(spelling)
            except ValueError as error:
                reason = str(error).rstrip(".")
                self._mark("gender", column == spelling, lambda row, reason=reason: reason)
        return np.array([names[spelling] for spelling in column])

    def _mark_not_finite(self, name: str, column: np.ndarray) -> None:
        finite = np.isfinite(column.reshape(self.people, -1)).all(axis=1)
        self._mark(name, ~finite, lambda row: f"{name} is not finite")

    def _mark(self, name: str, bad: np.ndarray, reason: Callable[[int], str]) -> None:
        rows = np.flatnonzero(bad).tolist()
        for row in rows:
            self.bad.setdefault(row, []).append(reason(row))
        if rows:
            self.bad_fields[name] = self.bad_fields.get(name, 0) + len(rows)

    def _as_numbers(self, name: str) -> np.ndarray | None:
        try:
            return np.asarray(self.columns[name], np.float64)
        except ValueError as error:
            self.faults.append(f"the field {name} holds no numbers: {error}")
            return None


def _refuse_old_boxes(path: Path) -> None:
    """Raise ValueError, with the command to make it again, if an earlier `prepare_data.py 3dpw` wrote the file."""
    with np.load(path, allow_pickle=False) as file:
        if not set(file.files) >= _OF_3DPW or "format_version" in file.files:
            return
    sequences = np.unique(read_arrays(path, ("sequence",))["sequence"]).tolist()
    split = path.stem.removeprefix("3dpw_")
    chosen = f"'dataset.splits=[{split}]'"
    if split not in SPLITS:
        chosen = f"'dataset.sequences=[{','.join(sequences)}]' dataset.subset={path.stem}"
    folder = "" if path.parent == Path("datasets/3dpw") else f" dataset.folder={path.parent}"
    raise ValueError(
        f"{path} was made by an earlier version of prepare_data.py, whose boxes for 3DPW were 12 % too wide. "
        f"Make it again: python tools/prepare_data.py 3dpw {chosen}{folder}"
    )
