"""The annotation files that users hold, in both flavours, as one typed table.

real images (COCO, MPII, H36M, MPI-INF-3DHP)      tests (3DPW, EMDB)
pose_cam or pose (P, >= 66)                        root_orient (P, 3), pose_body (P, >= 63)
shape or betas                                     betas
part (P, >= 24, 3)                                 j2d (P, 24, 3)
scale: box = 200 * scale px                        scale stored inverted: box = 200 / scale px
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np

from mega.bodies.smplh import gender_name
from mega.data.image_dataset import read_rgb

N_BETAS, N_POSED = 10, 22  # the root and 21 joints


@dataclass(frozen=True)
class PublishedAnnotations:
    """P people in pictures; rotations are those of the picture's camera frame.

    Attributes:
        imgname: (P,) path of the picture, relative to the folder that the user names.
        center: (P, 2) px.
        scale: (P,) the box is a square of 200 * scale px, whatever the file's convention.
        pose: (P, 22, 3) axis-angle of SMPL's joints, root first.
        betas: (P, 10).
        gender: (P,) neutral, male or female.
        keypoints2d: (P, 24, 3) px and confidence.
        smpl_joints: whether the 24 keypoints are SMPL's joints (tests) or those of `part` (real images).
    """

    imgname: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    pose: np.ndarray
    betas: np.ndarray
    gender: np.ndarray
    keypoints2d: np.ndarray
    smpl_joints: bool

    def __len__(self) -> int:
        return len(self.imgname)

    def select(self, rows: np.ndarray | slice) -> PublishedAnnotations:
        """The table of these rows."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "smpl_joints"}
        return replace(self, **{name: column[rows] for name, column in columns.items()})

    @classmethod
    def load(cls, path: str | Path) -> PublishedAnnotations:
        """Read a file of either flavour.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: when a field is missing, too short, not finite, or a gender is unknown; names file, field, row.
        """
        columns = _read(Path(path))
        is_test = "j2d" in columns
        people = len(columns["imgname"])
        if "pose_cam" in columns or "pose" in columns:
            pose = _column(path, columns, ("pose_cam", "pose"), 3 * N_POSED)
        else:
            root = _column(path, columns, ("root_orient",), 3)
            pose = np.concatenate([root, _column(path, columns, ("pose_body",), 3 * (N_POSED - 1))], axis=1)
        keypoints = _column(path, columns, ("j2d", "part"), 24)
        if keypoints.ndim != 3 or keypoints.shape[2] < 3:
            raise ValueError(f"{path}: the keypoints have shape {keypoints.shape}, expected (P, 24, 3).")
        scale = np.asarray(columns["scale"], np.float64).reshape(people, -1)[:, 0]
        bad = np.flatnonzero(~(np.isfinite(scale) & (scale > 0)))
        if len(bad):
            raise ValueError(f"{path}: the scale of row {bad[0]} is {scale[bad[0]]}, it must be above 0.")
        return cls(
            imgname=np.asarray(columns["imgname"]).astype(str),
            center=_column(path, columns, ("center",), 2),
            scale=1 / scale if is_test else scale,
            pose=pose.reshape(people, N_POSED, 3),
            betas=_column(path, columns, ("betas", "shape"), N_BETAS),
            gender=_genders(path, columns.get("gender"), people),
            keypoints2d=keypoints[..., :3],
            smpl_joints=is_test,
        )


def read_published_rgb(path: Path) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB; one whose path holds `closeup` is stored lying and is turned clockwise."""
    image = read_rgb(path)
    return cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE) if "closeup" in str(path) else image


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but a file of annotations (.npz) is expected.")
    if not path.is_file():
        raise FileNotFoundError(f"There are no annotations at {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files if name in _FIELDS}
    except (zipfile.BadZipFile, zlib.error, TypeError, ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as annotations (arrays without pickle): {error}") from error
    for choice in (("imgname",), ("center",), ("scale",), ("part", "j2d"), ("shape", "betas")):
        if not set(choice) & columns.keys():
            raise ValueError(f"{path} lacks the field {' or '.join(choice)}.")
    if not ({"pose_cam", "pose"} & columns.keys() or {"root_orient", "pose_body"} <= columns.keys()):
        raise ValueError(f"{path} lacks a pose: pose_cam, pose, or root_orient and pose_body.")
    people = columns["imgname"].size
    for name, column in columns.items():
        if column.shape[:1] != (people,):
            raise ValueError(f"{path}: the field {name} has shape {column.shape}, but there are {people} imgnames.")
    return columns


_FIELDS = (
    *("imgname", "center", "scale", "gender", "pose_cam", "pose", "root_orient", "pose_body", "shape", "betas"),
    *("part", "j2d"),
)


def _column(path: str | Path, columns: dict[str, np.ndarray], names: tuple[str, ...], length: int) -> np.ndarray:
    """The first of `names` that is there, its second axis cut to `length`, as float64."""
    name = next(n for n in names if n in columns)
    try:
        column = np.asarray(columns[name], np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: the field {name} holds no numbers: {error}.") from error
    if column.ndim < 2 or column.shape[1] < length:
        raise ValueError(f"{path}: the field {name} has shape {column.shape}, expected (P, {length}) or more.")
    column = column[:, :length]
    bad = np.flatnonzero(~np.isfinite(column.reshape(len(column), -1)).all(axis=1))
    if len(bad):
        raise ValueError(f"{path}: the field {name} is not finite in row {bad[0]}.")
    return column


def _genders(path: str | Path, column: np.ndarray | None, people: int) -> np.ndarray:
    if column is None:
        return np.full(people, "neutral")
    names = []
    for row, gender in enumerate(column):
        try:
            names.append(gender_name(gender.decode() if isinstance(gender, bytes) else gender))
        except ValueError as error:
            raise ValueError(f"{path}, row {row}: {error}") from error
    return np.array(names)
