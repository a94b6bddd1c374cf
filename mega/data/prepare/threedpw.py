"""3DPW: `sequenceFiles/{train,validation,test}/*.pkl` -> annotation files, with boxes smoothed over time.

Source: von Marcard et al., Recovering Accurate 3D Human Pose in The Wild Using IMUs and a Moving Camera, ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter

from mega.data.prepare.frames import (
    Frames,
    annotate,
    gender_letter,
    is_rigid,
    joined,
    project,
    repeated,
    skip_missing_pictures,
    turn_to_camera,
    world_to_camera,
)
from mega_common.files import as_numbers, load_pickle, pick, take

_CONFIDENT = 0.3
_MEDIAN, _SIGMA = 11, 8.0  # frames
_HEIGHT, _CROP = 150, 200  # px: height of the person in the crop, side of the crop
_LEAST_HEIGHT = 0.5  # px


def smooth_boxes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in which a person is about 150 of 200 px high, smoothed over time, as in the published annotations of 3DPW.

    The centre is that of the rectangle around the confident joints of a frame; the height is its diagonal, which also
    works for people who lie. Centre and 150 / height are interpolated linearly between frames with confident joints,
    and smoothed by a median filter of 11 frames and a Gaussian of sigma 8 frames. The track goes from the first to the
    last frame with confident joints. As in the published preparation, the median filter is padded with zeros, so that
    it gives a lower rank than the median in the first and last five frames; the Gaussian is padded by reflection.
    Tracks of five frames or fewer, where zeros would be the majority, are not median filtered.

    Args:
        points: (N, K, 3) joints, x, y px and confidence, for every frame of the sequence.

    Returns:
        center (N, 2) px, side (N,) px, and known (N,) bool: whether the frame is on the track. Other frames get the
        nearest box of the track.

    Source: Kanazawa et al., Learning 3D Human Dynamics from Video, CVPR 2019, for the size and the smoothing.
    """
    confident = (points[..., 2:] > _CONFIDENT) & np.isfinite(points).all(axis=2, keepdims=True)
    low = np.where(confident, points[..., :2], np.inf).min(axis=1)
    high = np.where(confident, points[..., :2], -np.inf).max(axis=1)
    seen = confident.any(axis=(1, 2))
    center, height = np.zeros_like(low), np.zeros(len(low))
    center[seen] = (low[seen] + high[seen]) / 2
    height[seen] = np.linalg.norm(high[seen] - low[seen], axis=1)
    seen &= height >= _LEAST_HEIGHT
    if not seen.any():
        return center, np.ones(len(points)), seen
    time = np.flatnonzero(seen)
    first, last = time[0], time[-1]
    observed = np.stack([*center[seen].T, _HEIGHT / height[seen]])
    track = np.stack([np.interp(np.arange(first, last + 1), time, values) for values in observed])
    if track.shape[1] > _MEDIAN // 2:
        track = median_filter(track, (1, _MEDIAN), mode="constant", cval=0)
    track = gaussian_filter1d(track, _SIGMA)
    x, y, magnification = np.pad(track, ((0, 0), (first, len(points) - 1 - last)), mode="edge")
    known = (np.arange(len(points)) >= first) & (np.arange(len(points)) <= last)
    return np.stack([x, y], axis=1), _CROP / magnification, known


SPLITS = ("train", "validation", "test")


def prepare_3dpw(
    folder: str, splits: Sequence[str] = SPLITS, sequences: Sequence[str] | None = None, subset: str | None = None
) -> int:
    """Write `folder/3dpw_{split}.npz`, or with a `subset` one file of that name for all the splits.

    Args:
        folder: with `sequenceFiles/` and `imageFiles/`, relative to the project.
        splits: train, validation, test.
        sequences: names or patterns of the sequences to use (courtyard_*); None for all.
        subset: name of the file of chosen sequences.

    Returns the number of problems; each is printed.

    Raises FileNotFoundError if a split is missing, ValueError for an unknown split, for sequences without a subset or
    the reverse, and for a pattern without a match.
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"3DPW has no split {', '.join(unknown)}: its splits are {', '.join(SPLITS)}.")
    if (sequences is None) != (subset is None):
        raise ValueError("Give dataset.sequences and dataset.subset, the name of their file, or neither.")
    found = {split: _sequence_files(Path(folder), split) for split in splits}
    if subset is not None:
        files = [file for split in found.values() for file in split]
        chosen = [file for file in files if any(fnmatchcase(file.stem, pattern) for pattern in sequences)]
        for pattern in sequences:
            if not any(fnmatchcase(file.stem, pattern) for file in files):
                raise ValueError(f"No sequence of {', '.join(splits)} in {folder} is called {pattern}.")
        found = {subset: chosen}
    else:
        found = {f"3dpw_{split}": files for split, files in found.items()}
    return sum(
        annotate(files, lambda file: (file.stem, read_sequence(file, Path(folder))), Path(folder) / f"{name}.npz")
        for name, files in found.items()
    )


def _sequence_files(folder: Path, split: str) -> list[Path]:
    files = sorted((folder / "sequenceFiles" / split).glob("*.pkl"))
    if not files:
        raise FileNotFoundError(
            f"There are no sequences in {folder / 'sequenceFiles' / split}. Unpack sequenceFiles.zip and "
            f"imageFiles.zip of https://virtualhumans.mpi-inf.mpg.de/3DPW in {folder}, or leave the split out "
            "(dataset.splits)."
        )
    return files


def read_sequence(file: Path, folder: Path) -> Frames:
    """Every person in every frame of a sequence; unusable rows have a reason. Raises ValueError with file and field."""
    content = load_pickle(file)
    people = [_read_person(content, person, file, folder) for person in range(len(_list(content, file, "poses")))]
    if not people:
        raise ValueError(f"{file} holds no people.")
    return joined(people)


def _read_person(content: dict, person: int, file: Path, folder: Path) -> Frames:
    def of_person(name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        values = _list(content, file, name)
        if person >= len(values):
            raise ValueError(f"{file}: the field {name} lacks person {person}.")
        return as_numbers(values[person], file, f"{name}[{person}]", shape)

    cam_ext = take(content, file, "cam_poses", (None, 4, 4))
    n = len(cam_ext)
    poses, trans = of_person("poses", (n, 72)), of_person("trans", (n, 3))
    joints = of_person("jointPositions", (n, 72)).reshape(n, 24, 3)
    betas = of_person("betas", (None,))
    if len(betas) < 10:
        raise ValueError(f"{file}: the field betas[{person}] has {len(betas)} values, 10 are needed.")
    genders = _list(content, file, "genders")
    try:
        gender = gender_letter(genders[person])
    except (IndexError, ValueError) as error:
        raise ValueError(f"{file}: the field genders has no usable entry for person {person}: {error}") from error
    cam_int = repeated(take(content, file, "cam_intrinsics", (3, 3)), n)
    center, side, boxed = smooth_boxes(of_person("poses2d", (n, 3, 18)).transpose(0, 2, 1))
    in_camera = world_to_camera(joints, cam_ext)
    # SMPL rotates about its pelvis, at J0 + trans: so the joints give the rest pelvis J0.
    rest_pelvis = np.nanmedian(joints[:, 0] - trans, axis=0)
    frame = np.arange(n)
    frames = Frames(
        sequence=repeated(file.stem, n),
        person=repeated(person, n),
        frame=frame,
        imgname=np.array([(folder / "imageFiles" / file.stem / f"image_{i:05d}.jpg").as_posix() for i in frame], str),
        gender=repeated(gender, n),
        center=center,
        side=side,
        root_orient=turn_to_camera(poses[:, :3], cam_ext),
        pose_body=poses[:, 3:66],
        betas=repeated(betas[:10], n),
        trans=trans,
        j2d=np.concatenate([project(in_camera, cam_int), np.ones((n, 24, 1))], axis=2),
        cam_int=cam_int,
        cam_ext=cam_ext,
        trans_cam=in_camera[:, 0] - rest_pelvis,
        reason=repeated("", n),
    )
    valid = of_person("campose_valid", (n,)).astype(bool)
    frames = frames.skip(~valid | ~is_rigid(cam_ext), "invalid camera pose").skip(~boxed, "no confident 2D joints")
    frames = frames.skip((in_camera[..., 2] <= 0).any(axis=1), "joints behind the camera")
    return skip_missing_pictures(frames.skip_not_finite())


def _list(content: dict, file: Path, name: str) -> list:
    """A list with one entry per person."""
    value = pick(content, file, name)
    if not isinstance(value, list | tuple | np.ndarray):
        raise ValueError(
            f"{file}: the field {name} is a {type(value).__name__}, expected a list with one entry per person."
        )
    return list(value)
