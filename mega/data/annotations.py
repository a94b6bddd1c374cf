"""The annotations of a split of pictures: a typed table, one row a person, stored as arrays in one `.npz`."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Annotations:
    """P people in pictures. Pixels are those of the picture, metres and rotations those of its camera frame.

    Attributes:
        body: name of the body model that pose and shape are for.
        imgname: (P,) path of the picture relative to the split's folder.
        box: (P, 4) x0, y0, x1, y1 px, tight around the projected mesh; leaves the picture where the person does.
        image_size: (P, 2) width, height px.
        pose: (P, J, 3) axis-angle of the joints, root left out.
        shape: (P, S).
        root_orient: (P, 3) axis-angle from the canonical to the camera frame.
        trans: (P, 3) m, where the canonical centre stands in the camera frame.
        focal: (P,) px.
        principal_point: (P, 2) px.
        keypoints2d: (P, 23, 3) x, y px and visibility 0 or 1.
        keypoints3d: (P, 23, 3) m.
    """

    body: str
    imgname: np.ndarray
    box: np.ndarray
    image_size: np.ndarray
    pose: np.ndarray
    shape: np.ndarray
    root_orient: np.ndarray
    trans: np.ndarray
    focal: np.ndarray
    principal_point: np.ndarray
    keypoints2d: np.ndarray
    keypoints3d: np.ndarray

    def __len__(self) -> int:
        return len(self.imgname)

    def select(self, rows: np.ndarray | slice) -> Annotations:
        """The table of these rows."""
        return self._map(lambda column: column[rows])

    def _map(self, change: Callable[[np.ndarray], np.ndarray]) -> Annotations:
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "body"}
        return Annotations(self.body, **{name: change(column) for name, column in columns.items()})

    @classmethod
    def load(cls, path: str | Path) -> Annotations:
        """Read a table; fields that it does not know are left alone.

        Raises:
            FileNotFoundError: with what to do about it.
            ValueError: when a field is missing, of another shape or not finite; names the file and the field.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There are no annotations at {path}. Make them: python make_synthetic.py")
        try:
            with np.load(path, allow_pickle=False) as file:
                columns = {f.name: file[f.name] for f in fields(cls) if f.name in file.files}
        except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as annotations: {error}") from error
        missing = [f.name for f in fields(cls) if f.name not in columns]
        if missing:
            raise ValueError(f"{path} lacks the fields {missing}. Was it made by another version of make_synthetic.py?")
        body = str(columns.pop("body"))
        _check(path, columns)
        return cls(body, **{name: _as_stored(column) for name, column in columns.items()})


# The shape of a row; None is any length.
_ROW_SHAPES = {
    "imgname": (),
    "box": (4,),
    "image_size": (2,),
    "pose": (None, 3),
    "shape": (None,),
    "root_orient": (3,),
    "trans": (3,),
    "focal": (),
    "principal_point": (2,),
    "keypoints2d": (None, 3),
    "keypoints3d": (None, 3),
}


def _as_stored(column: np.ndarray) -> np.ndarray:
    """Numbers as float32, names as they are."""
    return column if column.dtype.kind == "U" else column.astype(np.float32)


def _check(path: Path, columns: dict[str, np.ndarray]) -> None:
    people = len(columns["imgname"])
    for name, column in columns.items():
        wanted = (people, *_ROW_SHAPES[name])
        fits = column.ndim == len(wanted) and all(
            want is None or have == want for have, want in zip(column.shape, wanted, strict=True)
        )
        if not fits:
            shape = ", ".join("any" if want is None else str(want) for want in wanted)
            raise ValueError(f"{path}: the field {name} has shape {column.shape}, expected ({shape}).")
        if name != "imgname" and not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column.reshape(people, -1)).all(axis=1))[0])
            raise ValueError(f"{path}: the field {name} is not finite in row {row}.")
