"""The annotation files that users hold, in both flavours, as one typed table.

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
from mega_common.restricted_pickle import read_arrays

log = logging.getLogger(__name__)

N_BETAS, N_POSED = 10, 22  # the root and 21 joints
_NAMED = 5  # how many bad rows a message names


@dataclass(frozen=True)
class SMPLAnnotations:
    """P people in pictures; rotations are those of the picture's camera frame.

    Attributes:
        row: (P,) of the file.
        imgname: (P,) path of the picture, relative to the folder that the user names.
        center: (P, 2) px.
        scale: (P,) the box is a square of 200 * scale px, whatever the file's convention.
        pose: (P, 22, 3) axis-angle of SMPL's joints, root first.
        betas: (P, 10).
        gender: (P,) neutral, male or female.
        keypoints2d: (P, 24, 3) px and, of `part`, confidence. Of `j2d` the third column is no confidence: published
            files have the depth there.
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
        """The first of these folders in which a picture of the table is found; the first of all if there is none.

        The first 100 rows are looked at, since training goes on where a few pictures are missing.
        """
        names = self.imgname[:100].tolist()
        return next((place for place in places if any((place / name).is_file() for name in names)), places[0])

    def select(self, rows: np.ndarray | slice) -> SMPLAnnotations:
        """The table of these rows."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("smpl_joints", "problem")}
        return replace(self, **{name: column[rows] for name, column in columns.items()})

    @classmethod
    def load(cls, path: str | Path, skip_bad_rows: bool = False) -> SMPLAnnotations:
        """Read a file of either flavour.

        A row is bad if a number in it is not finite, its scale is not above 0, or its gender is unknown.

        Args:
            path: of the file.
            skip_bad_rows: leave bad rows out, with one warning, as training can. A test on fewer people is another
                test: by default they are refused.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: when a field is missing, too short or of another length than the rest, for bad rows, and when no
                row is left; names file, field, row.
        """
        file = _File(Path(path))
        is_test = "j2d" in file.columns
        if "pose_cam" in file.columns or "pose" in file.columns:
            pose = file.numbers(("pose_cam", "pose"), 3 * N_POSED)
        else:
            root = file.numbers(("root_orient",), 3)
            pose = np.concatenate([root, file.numbers(("pose_body",), 3 * (N_POSED - 1))], axis=1)
        scale = file.scale()
        table = cls(
            row=np.arange(file.people),
            imgname=np.asarray(file.columns["imgname"]).astype(str),
            center=file.numbers(("center",), 2),
            scale=1 / scale if is_test else scale,
            pose=pose.reshape(file.people, N_POSED, 3),
            betas=file.numbers(("betas", "shape"), N_BETAS),
            gender=file.genders(),
            keypoints2d=file.numbers(("j2d", "part"), 24, 3),
            smpl_joints=is_test,
        )
        if not file.bad:
            return table
        problem = _describe(file, table.imgname)
        if not skip_bad_rows:
            raise ValueError(f"{problem} Correct them: a test needs every row.")
        if len(file.bad) == file.people:
            raise ValueError(f"{problem} None is left to train on.")
        log.warning("%s They are left out.", problem)
        return replace(table.select(np.setdiff1d(table.row, list(file.bad))), problem=problem)


def read_smpl_picture(root: Path, imgname: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB below `root`. If `imgname` holds `closeup`, it is stored lying and is turned
    clockwise; the names of the folders above do not count.
    """
    image = read_rgb(root / imgname)
    return cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE) if "closeup" in imgname else image


def _describe(file: _File, imgname: np.ndarray) -> str:
    named = [f"row {row} ({imgname[row]}): {reason}" for row, reason in sorted(file.bad.items())[:_NAMED]]
    more = ["…"] if len(file.bad) > _NAMED else []
    return f"{file.path}: {len(file.bad)} of {file.people} rows cannot be used: {'; '.join(named + more)}."


class _File:
    """The arrays of a file, and `bad`: what is wrong with its rows, {row: reason}, filled as they are asked for."""

    def __init__(self, path: Path):
        self.path, self.columns = path, _read(path)
        self.people = self.columns["imgname"].size
        self.bad: dict[int, str] = {}

    def numbers(self, names: tuple[str, ...], *lengths: int) -> np.ndarray:
        """The first of `names` that is there, its axes after the first cut to `lengths`, as float64."""
        name = next(n for n in names if n in self.columns)
        column = self._as_numbers(name)
        fits = column.ndim == 1 + len(lengths) and all(
            have >= want for have, want in zip(column.shape[1:], lengths, strict=True)
        )
        if not fits:
            wanted = ", ".join(map(str, lengths))
            raise ValueError(f"{self.path}: the field {name} has shape {column.shape}, expected (P, {wanted}) or more.")
        column = column[(slice(None), *map(slice, lengths))]
        self._mark(~np.isfinite(column.reshape(self.people, -1)).all(axis=1), lambda row: f"{name} is not finite")
        return column

    def scale(self) -> np.ndarray:
        """(P,) as stored, NaN where it is bad."""
        scale = self._as_numbers("scale").reshape(self.people, -1)[:, 0]
        bad = ~(np.isfinite(scale) & (scale > 0))
        self._mark(bad, lambda row: f"scale is {scale[row]}, it must be above 0")
        return np.where(bad, np.nan, scale)

    def genders(self) -> np.ndarray:
        """(P,) names; bad ones are empty."""
        if "gender" not in self.columns:
            return np.full(self.people, "neutral")
        try:
            column = self.columns["gender"].reshape(self.people, -1)[:, 0].astype(str)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: the field gender holds no text: {error}.") from error
        names = {}
        for said in np.unique(column):
            try:
                names[said] = gender_name(said)
            except ValueError as error:
                reason = str(error).rstrip(".")
                self._mark(column == said, lambda row, reason=reason: reason)
                names[said] = ""
        return np.array([names[said] for said in column])

    def _mark(self, bad: np.ndarray, reason: Callable[[int], str]) -> None:
        for row in np.flatnonzero(bad).tolist():
            self.bad.setdefault(row, reason(row))

    def _as_numbers(self, name: str) -> np.ndarray:
        try:
            return np.asarray(self.columns[name], np.float64)
        except ValueError as error:
            raise ValueError(f"{self.path}: the field {name} holds no numbers: {error}.") from error


_FIELDS = (
    *("imgname", "center", "scale", "gender", "pose_cam", "pose", "root_orient", "pose_body", "shape", "betas"),
    *("part", "j2d"),
)
# What `prepare_data.py 3dpw` writes and the published files do not have; `trans_cam` is not in EMDB's files.
_OF_3DPW = {"sequence", "person", "frame", "cam_ext", "trans_cam"}


def _refuse_old_boxes(path: Path) -> None:
    """Raise ValueError if an earlier `prepare_data.py 3dpw` wrote the file, with the command that makes it anew."""
    with np.load(path, allow_pickle=False) as file:
        if not set(file.files) >= _OF_3DPW or "format_version" in file.files:
            return
        sequences = np.unique(file["sequence"]).tolist()
    split = path.stem.removeprefix("3dpw_")
    chosen = f"'dataset.splits=[{split}]'"
    if split not in SPLITS:
        chosen = f"'dataset.sequences=[{','.join(sequences)}]' dataset.subset={path.stem}"
    folder = "" if path.parent == Path("datasets/3dpw") else f" dataset.folder={path.parent}"
    raise ValueError(
        f"{path} was made by an earlier version of prepare_data.py, whose boxes for 3DPW were 12 % too wide. "
        f"Make it anew: python prepare_data.py 3dpw {chosen}{folder}"
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    require(path)
    columns = read_arrays(path, _FIELDS)
    _refuse_old_boxes(path)
    for choice in (("imgname",), ("center",), ("scale",), ("part", "j2d"), ("shape", "betas")):
        if not set(choice) & columns.keys():
            raise ValueError(f"{path} lacks the field {' or '.join(choice)}.")
    if not ({"pose_cam", "pose"} & columns.keys() or {"root_orient", "pose_body"} <= columns.keys()):
        raise ValueError(f"{path} lacks a pose: pose_cam, pose, or root_orient and pose_body.")
    people = columns["imgname"].size
    if not people:
        raise ValueError(f"{path} holds no rows.")
    other = [f"{name} has shape {c.shape}" for name, c in columns.items() if c.shape[:1] != (people,)]
    if other:
        raise ValueError(f"{path}: there are {people} imgnames, but {', '.join(other)}.")
    return columns
