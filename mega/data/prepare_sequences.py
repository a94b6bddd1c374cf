"""3DPW and EMDB as distributed -> the annotation files that training and evaluation read.

A table holds people in pictures: {column: (F, …) array}, one row for each frame of a person. What belongs to one person
in one picture is in one row from the start, and only whole rows are selected, so that picture, pose and validity cannot
be shifted against one another. `datasets/README.md` describes the columns; a table also has

    side      px, of the square box; in the file it becomes `scale`
    reason    why the row is not used, empty if it is

Sources: von Marcard et al., Recovering Accurate 3D Human Pose in The Wild Using IMUs and a Moving Camera, ECCV 2018.
Kaufmann et al., EMDB: The Electromagnetic Database of Global 3D Human Pose and Shape in the Wild, ICCV 2023.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import roma
import torch
from scipy.ndimage import gaussian_filter1d, median_filter
from tqdm import tqdm

from mega.bodies.smplh import gender_name
from mega.geometry import box_center_and_side
from mega_common.files import as_numbers, load_pickle, pick, take, write_json, write_npz

Table = dict[str, np.ndarray]

_SCALE_UNIT = 200  # px, of `scale`
_FORMAT_VERSION = 2  # in files without this number, 3DPW's boxes are 12 % too wide
_RIGID_TOLERANCE = 1e-2
_MISSING_PICTURE = "missing picture"
_EMDB_MARGIN = 1.2
_CONFIDENT = 0.3
_MEDIAN, _SIGMA = 11, 8.0  # frames
_HEIGHT, _CROP = 150, 200  # px: height of the person in the crop, side of the crop
_LEAST_HEIGHT = 0.5  # px


def prepare_3dpw(
    folder: str,
    splits: Sequence[Literal["train", "validation", "test"]] = ("train", "validation", "test"),
    sequences: Sequence[str] | None = None,
    subset: str | None = None,
) -> int:
    """Write `folder/3dpw_{split}.npz`, or with a `subset` one file of that name for all the splits.

    Args:
        folder: with `sequenceFiles/` and `imageFiles/`, relative to the project.
        sequences: names or patterns of the sequences to use (courtyard_*); None for all.
        subset: name of the file of chosen sequences.

    Returns the number of problems; each is printed.

    Raises FileNotFoundError if a split is missing, ValueError for sequences without a subset or the reverse, and for a
    pattern without a match.
    """
    if (sequences is None) != (subset is None):
        raise ValueError("Give dataset.sequences and dataset.subset, the name of their file, or neither.")
    outputs = {}
    for split in splits:
        source = Path(folder) / "sequenceFiles" / split
        outputs[f"3dpw_{split}"] = {file.stem: file for file in sorted(source.glob("*.pkl"))}
        if not outputs[f"3dpw_{split}"]:
            raise FileNotFoundError(
                f"There are no sequences in {source}. Unpack sequenceFiles.zip and imageFiles.zip of "
                f"https://virtualhumans.mpi-inf.mpg.de/3DPW in {folder}, or leave the split out (dataset.splits)."
            )
    if subset is not None:
        files = {name: file for split in outputs.values() for name, file in split.items()}
        group = f"{', '.join(splits)} in {folder}"
        outputs = {subset: _select(files, sequences, "dataset.sequences", group)}
    return sum(_annotate(files, _read_3dpw, Path(folder) / f"{name}.npz") for name, files in outputs.items())


def prepare_emdb(
    folder: str,
    part: Literal["emdb1", "emdb2"] = "emdb1",
    name: str | None = None,
    validation_share: float | None = None,
    validation: Sequence[str] | None = None,
) -> int:
    """Write `folder/{name}.npz`: the sequences of a part, their good frames with a valid box.

    With one of the last two arguments, the part is split by whole sequences into `{name}_train.npz` and
    `{name}_validation.npz`.

    Args:
        folder: with `P0/` … `P9/`, relative to the project.
        part: emdb1 is the test set for single pictures.
        name: name of the file to write; None: emdb_test (emdb1) or emdb2 (emdb2).
        validation_share: fraction of the sequences for validation, at least one, chosen by a hash of their names.
        validation: names or patterns of the sequences for validation (P1/*).

    Returns the number of problems; each is printed.

    Raises FileNotFoundError if there are no sequences, ValueError for a split with an empty side, or a pattern without
    a match.
    """
    if validation_share is not None and validation is not None:
        raise ValueError("Give dataset.validation_share or dataset.validation, not both.")
    if validation_share is not None and not 0 < validation_share < 1:
        raise ValueError(f"dataset.validation_share={validation_share} must lie between 0 and 1.")
    name = name or ("emdb_test" if part == "emdb1" else part)
    files = {file.parent.relative_to(folder).as_posix(): file for file in sorted(Path(folder).glob("P*/*/*_data.pkl"))}
    if not files:
        raise FileNotFoundError(
            f"There are no sequences (P*/*/*_data.pkl) in {folder}. Unpack the files of "
            "https://eth-ait.github.io/emdb there, so that P0, P1 … lie in it."
        )
    outputs = {name: files}
    if validation_share is not None or validation is not None:
        files = {sequence: file for sequence, file in files.items() if _may_be_of(part, file)}
        if validation is not None:
            held_out = _select(files, validation, "dataset.validation", "the part")
        else:
            by_hash = sorted(files, key=lambda sequence: hashlib.sha256(sequence.encode()).hexdigest())
            held_out = by_hash[: max(1, round(validation_share * len(files)))]
        if not 0 < len(held_out) < len(files):
            raise ValueError(
                f"{len(held_out)} of the part's {len(files)} sequences would be for validation: some must be, some not."
            )
        outputs = {
            f"{name}_train": {sequence: file for sequence, file in files.items() if sequence not in held_out},
            f"{name}_validation": {sequence: file for sequence, file in files.items() if sequence in held_out},
        }
    read = partial(_read_emdb, part=part)
    return sum(_annotate(files, read, Path(folder) / f"{name}.npz") for name, files in outputs.items())


def _select(sequences: dict[str, Path], patterns: Sequence[str], option: str, group: str) -> dict[str, Path]:
    """The sequences whose names match a pattern. Raises ValueError for a pattern without a match."""
    chosen = set()
    for pattern in patterns:
        matches = fnmatch.filter(sequences, pattern)
        if not matches:
            raise ValueError(f"{option}: no sequence of {group} is called {pattern}.")
        chosen.update(matches)
    return {name: file for name, file in sequences.items() if name in chosen}


def _may_be_of(part: str, file: Path) -> bool:
    """Whether a sequence of EMDB is of a part, or cannot be read, so that `_annotate` reports it."""
    try:
        return bool(load_pickle(file).get(part, True))
    except (OSError, ValueError):
        return True


def _annotate(sequences: Mapping[str, Path], read: Callable[[str, Path], Table], output: Path) -> int:
    """Read every sequence, write `output` (.npz) and a `*_report.json` next to it, and print what was kept.

    Unreadable sequences are reported and skipped.

    Args:
        sequences: {name: raw file}.
        read: name and raw file -> table.

    Returns the number of problems: unreadable files, sequences with missing pictures, nothing to write.
    """
    counts, totals, problems, tables = {}, Counter(kept=0), [], []
    for name, file in tqdm(sequences.items(), desc=output.stem, unit="sequence"):
        try:
            table = read(name, file)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        reasons = Counter(reason or "kept" for reason in table["reason"].tolist())
        counts[name] = {"kept": reasons.pop("kept", 0), **dict(reasons.most_common())}
        totals.update(counts[name])
        absent = table["imgname"][table["reason"] == _MISSING_PICTURE]
        if len(absent):
            problems.append(f"{file}: {len(absent)} pictures are missing, the first is {absent[0]}.")
        tables.append(table)
    if totals["kept"]:
        columns = _joined(tables)
        used = columns.pop("reason") == ""
        columns = {name: column[used] for name, column in columns.items()}
        scale = _SCALE_UNIT / columns.pop("side")  # stored inverted, as in the published test files
        write_npz(output, columns | {"scale": scale, "format_version": np.array(_FORMAT_VERSION)})
    else:
        problems.append(f"{output} is not written: no frame can be used.")
    report = {"kept": dict(totals), "sequences": counts, "problems": problems}
    write_json(output.with_name(f"{output.stem}_report.json"), report)
    width = max(map(len, counts), default=0)
    lines = [f"  {name:<{width}}  {_as_text(reasons)}" for name, reasons in counts.items()]
    print(*lines, f"{output}: {_as_text(totals)}", *problems, sep="\n")
    return len(problems)


def _as_text(counts: Mapping[str, int]) -> str:
    kept, *others = [f"{n} {what}" for what, n in counts.items()]
    return f"{kept}, skipped: {', '.join(others)}" if others else kept


def _joined(tables: Sequence[Table]) -> Table:
    """The rows of all tables."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _table(
    pictures: Path, pattern: str, constant: Mapping[str, object], columns: Table, unusable: Mapping[str, np.ndarray]
) -> Table:
    """The table of one person in a sequence of F frames.

    Args:
        pictures: folder of the pictures; pattern: their names, from the number of the frame.
        constant: {column: value of the whole sequence}.
        columns: the other columns, one row per frame. Here `root_orient` is in the world frame and `j2d` (F, 24, 2).
        unusable: {reason: (F,) bool, the rows that it applies to}. The first that applies is the row's `reason`; the
            last two are that a number is not finite, and that the picture is missing.
    """
    n = len(columns["cam_ext"])
    names = [pictures / pattern.format(i) for i in range(n)]
    turn = torch.from_numpy(columns["cam_ext"][:, :3, :3].copy())
    root = turn @ roma.rotvec_to_rotmat(torch.from_numpy(columns["root_orient"]))
    table = {name: np.repeat(np.asarray(value)[None], n, axis=0) for name, value in constant.items()}
    table |= columns | {
        "frame": np.arange(n),
        "imgname": np.array([name.as_posix() for name in names], str),
        "root_orient": roma.rotmat_to_rotvec(root).numpy(),
        "j2d": np.pad(columns["j2d"], ((0, 0), (0, 0), (0, 1)), constant_values=1),
    }
    lengths = {name: len(column) for name, column in table.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of a table differ in length: {lengths}.")
    finite = [np.isfinite(c.reshape(n, -1)).all(axis=1) for c in table.values() if c.dtype.kind == "f"]
    there = set(pictures.iterdir()) if pictures.is_dir() else set()
    absent = np.array([name not in there for name in names])
    unusable = {**unusable, "not finite": ~np.all(finite, axis=0), _MISSING_PICTURE: absent}
    return table | {"reason": np.select([*unusable.values()], [*unusable], default="")}


def _read_3dpw(sequence: str, file: Path) -> Table:
    """Every person in every frame. Raises ValueError with file and field."""
    content = load_pickle(file)
    cam_ext, cam_int = take(content, file, "cam_poses", (None, 4, 4)), take(content, file, "cam_intrinsics", (3, 3))
    n, n_people = len(cam_ext), 0
    for name in ("poses", "trans", "jointPositions", "betas", "genders", "poses2d", "campose_valid"):
        value = pick(content, file, name)
        if not isinstance(value, list | tuple | np.ndarray):
            kind = type(value).__name__
            raise ValueError(f"{file}: the field {name} is a {kind}, expected a list with one entry per person.")
        n_people = len(value) if name == "poses" else n_people
        if len(value) < n_people:
            raise ValueError(f"{file}: the field {name} lacks person {len(value)}.")
    if not n_people:
        raise ValueError(f"{file} holds no people.")

    def numbers(name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        return as_numbers(content[name][person], file, f"{name}[{person}]", shape)

    people = []
    for person in range(n_people):
        poses, trans = numbers("poses", (n, 72)), numbers("trans", (n, 3))
        joints = numbers("jointPositions", (n, 72)).reshape(n, 24, 3)
        betas = numbers("betas", (None,))
        if len(betas) < 10:
            raise ValueError(f"{file}: the field betas[{person}] has {len(betas)} values, 10 are needed.")
        center, side, boxed = smooth_boxes(numbers("poses2d", (n, 3, 18)).transpose(0, 2, 1))
        in_camera = joints @ cam_ext[:, :3, :3].transpose(0, 2, 1) + cam_ext[:, None, :3, 3]
        behind = in_camera[..., 2:] <= 0
        with np.errstate(divide="ignore", invalid="ignore"):
            points = (in_camera / np.where(behind, np.nan, in_camera[..., 2:]) @ cam_int.T)[..., :2]
        # SMPL rotates about its pelvis, at J0 + trans: so the joints give the rest pelvis J0.
        rest_pelvis = np.nanmedian(joints[:, 0] - trans, axis=0)
        constant = {
            "sequence": sequence,
            "person": person,
            "gender": _gender_letter(content["genders"][person], file, f"genders[{person}]"),
            "betas": betas[:10],
            "cam_int": cam_int,
        }
        columns = {
            "center": center,
            "side": side,
            "root_orient": poses[:, :3],
            "pose_body": poses[:, 3:66],
            "trans": trans,
            "j2d": points,
            "cam_ext": cam_ext,
            "trans_cam": in_camera[:, 0] - rest_pelvis,
        }
        unusable = {
            "invalid camera pose": (numbers("campose_valid", (n,)) == 0) | ~_is_rigid(cam_ext),
            "no confident 2D joints": ~boxed,
            "joints behind the camera": behind.any(axis=(1, 2)),
        }
        pictures = file.parents[2] / "imageFiles" / sequence
        people.append(_table(pictures, "image_{:05d}.jpg", constant, columns, unusable))
    return _joined(people)


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


def _read_emdb(sequence: str, file: Path, part: str) -> Table:
    """The person in every frame. Raises ValueError with file and field."""
    content = load_pickle(file)
    for name in ("camera", "smpl", "bboxes"):
        if not isinstance(pick(content, file, name), dict):
            raise ValueError(f"{file}: the field {name} is a {type(content[name]).__name__}, expected a dict.")
    camera, smpl, boxes = content["camera"], content["smpl"], content["bboxes"]
    n = int(take(content, file, "n_frames", ()))
    cam_ext = take(camera, file, "extrinsics", (n, 4, 4))
    corners = take(boxes, file, "bboxes", (n, 4))
    center, side = (value.numpy() for value in box_center_and_side(torch.from_numpy(corners)))
    invalid = take(boxes, file, "invalid_idxs", (None,)).astype(int)
    constant = {
        "sequence": sequence,
        "person": 0,
        "gender": _gender_letter(pick(content, file, "gender"), file, "gender"),
        "betas": take(smpl, file, "betas", (10,)),
        "cam_int": take(camera, file, "intrinsics", (3, 3)),
    }
    columns = {
        "center": center,
        "side": _EMDB_MARGIN * side,
        "root_orient": take(smpl, file, "poses_root", (n, 3)),
        "pose_body": take(smpl, file, "poses_body", (n, 69)),
        "trans": take(smpl, file, "trans", (n, 3)),
        "j2d": take(content, file, "kp2d", (n, 24, 2)),
        "cam_ext": cam_ext,
    }
    unusable = {
        f"not of {part}": np.full(n, not pick(content, file, part)),
        "not a good frame": take(content, file, "good_frames_mask", (n,)) == 0,
        "no valid box": np.isin(np.arange(n), invalid) | ~(corners[:, :2] < corners[:, 2:]).all(axis=1),
        "invalid camera pose": ~_is_rigid(cam_ext),
    }
    return _table(file.parent / "images", "{:05d}.jpg", constant, columns, unusable)


def _gender_letter(gender: object, file: Path, name: str) -> str:
    """m, f or neutral, from any spelling; raises ValueError with file and field for anything else."""
    try:
        known = gender_name(gender.decode() if isinstance(gender, bytes) else gender)
    except ValueError as error:
        raise ValueError(f"{file}: the field {name} cannot be used: {error}") from error
    return known if known == "neutral" else known[0]


def _is_rigid(cam_ext: np.ndarray) -> np.ndarray:
    """(N,) whether (N, 4, 4) world -> camera are a rotation and a shift; invalid cameras often are not."""
    rotation = cam_ext[:, :3, :3]
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
        upright = np.linalg.det(rotation) > 0
    return np.isfinite(cam_ext).all(axis=(1, 2)) & (off < _RIGID_TOLERANCE) & upright
