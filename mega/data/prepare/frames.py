"""One table of people in frames, from the raw file to the annotation file.

Whatever belongs to one person in one picture stands in one row from the start, and rows are only ever selected as a
whole. So picture, pose and validity cannot be shifted against one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from mega.bodies.smplh import gender_name

SIDE_UNIT = 200  # px; `scale` is told in it
FORMAT_VERSION = 2  # of the files; before it had a number, 3DPW's boxes were 12 % too wide
_LETTERS = {"male": "m", "female": "f", "neutral": "neutral"}


@dataclass(frozen=True)
class Frames:
    """F rows, each one person in one picture. Pixels are the picture's; metres; axis-angle in radians.

    Attributes:
        sequence: (F,) name.
        person: (F,) index in the sequence.
        frame: (F,) index in the sequence, from 0.
        imgname: (F,) path of the picture, from the project's root.
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
        trans_cam: (F, 3) SMPL's translation in the camera frame, None where the raw file does not tell.
        reason: (F,) why the row is not used; empty for the others.

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
        """The same table; those of `rows` (F,) bool that have no reason yet get this one."""
        return replace(self, reason=np.where(rows & (self.reason == ""), reason, self.reason))

    def skip_not_finite(self) -> Frames:
        """The same table; rows with a number that is not finite are given that as a reason."""
        numbers = [c.reshape(len(self), -1) for c in self.columns().values() if c.dtype.kind == "f"]
        return self.skip(~np.isfinite(np.concatenate(numbers, axis=1)).all(axis=1), "not finite")

    def used(self) -> Frames:
        """The rows without a reason against them."""
        rows = self.reason == ""
        return Frames(**{name: column[rows] for name, column in self.columns().items()})

    def annotations(self) -> dict[str, np.ndarray]:
        """The columns of an annotation file in the flavour of the tests: `scale` is stored inverted, 200 / side."""
        columns = self.columns()
        del columns["reason"]
        return columns | {"scale": SIDE_UNIT / columns.pop("side"), "format_version": np.array(FORMAT_VERSION)}


def joined(tables: Sequence[Frames]) -> Frames:
    """One table of all rows. The tables, at least one, know the same columns."""
    names = tables[0].columns()
    return Frames(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})


def gender_letter(gender: str | bytes) -> str:
    """m, f or neutral, from any spelling; raises ValueError for anything else."""
    return _LETTERS[gender_name(gender.decode() if isinstance(gender, bytes) else gender)]


def repeated(value: object, n: int) -> np.ndarray:
    """(n, ...): what holds for the whole sequence, once for each of its frames."""
    return np.repeat(np.asarray(value)[None], n, axis=0)
