"""EMDB: `P*/SEQ/*_data.pkl` -> annotation files of its parts.

Source: Kaufmann et al., EMDB: The Electromagnetic Database of Global 3D Human Pose and Shape in the Wild, ICCV 2023.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch

from mega.data.prepare.frames import (
    Frames,
    annotate,
    gender_letter,
    is_rigid,
    repeated,
    skip_missing_pictures,
    turn_to_camera,
)
from mega.geometry import box_center_and_side
from mega_common.files import load_pickle, pick, take

PARTS = ("emdb1", "emdb2")
_MARGIN = 1.2


def prepare_emdb(
    folder: str,
    part: str = "emdb1",
    name: str | None = None,
    validation_share: float | None = None,
    validation: Sequence[str] | None = None,
) -> int:
    """Write `folder/{name}.npz`: the sequences of a part, their good frames with a valid box.

    With one of the last two arguments, the part is split by whole sequences into `{name}_train.npz` and
    `{name}_validation.npz`.

    Args:
        folder: with `P0/` … `P9/`, relative to the project.
        part: emdb1, the test set for single pictures, or emdb2.
        name: name of the file to write; None: emdb_test (emdb1) or emdb2 (emdb2).
        validation_share: fraction of the sequences for validation, at least one, chosen by a hash of their names.
        validation: names or patterns of the sequences for validation (P1/*).

    Returns the number of problems; each is printed.

    Raises FileNotFoundError if there are no sequences, ValueError for an unknown part, a split with an empty side, or a
    pattern without a match.
    """
    if part not in PARTS:
        raise ValueError(f"dataset.part={part}, but it is one of {', '.join(PARTS)}.")
    if validation_share is not None and validation is not None:
        raise ValueError("Give dataset.validation_share or dataset.validation, not both.")
    name = name or {"emdb1": "emdb_test", "emdb2": "emdb2"}[part]
    files = sorted(Path(folder).glob("P*/*/*_data.pkl"))
    if not files:
        raise FileNotFoundError(
            f"There are no sequences (P*/*/*_data.pkl) in {folder}. Unpack the files of "
            "https://eth-ait.github.io/emdb there, so that P0, P1 … lie in it."
        )

    chosen = {name: files}
    if validation_share is not None or validation is not None:
        files = [file for file in files if _belongs(file, part)]
        held_out = _held_out([_sequence(file) for file in files], validation_share, validation)
        chosen = {
            f"{name}_train": [file for file in files if _sequence(file) not in held_out],
            f"{name}_validation": [file for file in files if _sequence(file) in held_out],
        }

    def read(file: Path) -> tuple[str, Frames]:
        return _sequence(file), read_sequence(file, part)

    return sum(annotate(files, read, Path(folder) / f"{name}.npz") for name, files in chosen.items())


def _sequence(file: Path) -> str:
    return f"{file.parent.parent.name}/{file.parent.name}"


def _belongs(file: Path, part: str) -> bool:
    """Whether a sequence is of a part; also if it cannot be read, so that `annotate` reports it."""
    try:
        return bool(load_pickle(file).get(part, True))
    except (OSError, ValueError):
        return True


def _held_out(sequences: Sequence[str], share: float | None, patterns: Sequence[str] | None) -> set[str]:
    """The sequences for validation. Raises ValueError if a pattern has no match, or all or none are chosen."""
    if share is not None:
        if not 0 < share < 1:
            raise ValueError(f"dataset.validation_share={share} must lie between 0 and 1.")
        by_hash = sorted(sequences, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        chosen = set(by_hash[: max(1, round(share * len(sequences)))])
    else:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in sequences):
                raise ValueError(f"dataset.validation: no sequence of the part is called {pattern}.")
        chosen = {name for name in sequences if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not 0 < len(chosen) < len(sequences):
        raise ValueError(
            f"{len(chosen)} of the part's {len(sequences)} sequences would be for validation: some must be, some not."
        )
    return chosen


def read_sequence(file: Path, part: str = "emdb1") -> Frames:
    """The person in every frame of a sequence; unusable rows have a reason. Raises ValueError with file and field."""
    content = load_pickle(file)
    camera, smpl, boxes = (_dict(content, file, name) for name in ("camera", "smpl", "bboxes"))
    n = int(take(content, file, "n_frames", ()))
    cam_ext = take(camera, file, "extrinsics", (n, 4, 4))
    keypoints = take(content, file, "kp2d", (n, 24, 2))
    corners = take(boxes, file, "bboxes", (n, 4))
    center, side = (value.numpy() for value in box_center_and_side(torch.from_numpy(corners)))
    try:
        gender = gender_letter(pick(content, file, "gender"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    frame = np.arange(n)
    frames = Frames(
        sequence=repeated(_sequence(file), n),
        person=np.zeros(n, int),
        frame=frame,
        imgname=np.array([(file.parent / "images" / f"{i:05d}.jpg").as_posix() for i in frame], str),
        gender=repeated(gender, n),
        center=center,
        side=_MARGIN * side,
        root_orient=turn_to_camera(take(smpl, file, "poses_root", (n, 3)), cam_ext),
        pose_body=take(smpl, file, "poses_body", (n, 69)),
        betas=repeated(take(smpl, file, "betas", (10,)), n),
        trans=take(smpl, file, "trans", (n, 3)),
        j2d=np.concatenate([keypoints, np.ones((n, 24, 1))], axis=2),
        cam_int=repeated(take(camera, file, "intrinsics", (3, 3)), n),
        cam_ext=cam_ext,
        reason=repeated("", n),
    )
    invalid = take(boxes, file, "invalid_idxs", (None,)).astype(int)
    no_box = np.isin(frame, invalid) | ~(corners[:, :2] < corners[:, 2:]).all(axis=1)
    good = take(content, file, "good_frames_mask", (n,)).astype(bool)
    frames = frames.skip(repeated(not pick(content, file, part), n), f"not of {part}")
    frames = frames.skip(~good, "not a good frame").skip(no_box, "no valid box")
    frames = frames.skip(~is_rigid(cam_ext), "invalid camera pose")
    return skip_missing_pictures(frames.skip_not_finite())


def _dict(content: dict, file: Path, name: str) -> dict:
    value = pick(content, file, name)
    if not isinstance(value, dict):
        raise ValueError(f"{file}: the field {name} is a {type(value).__name__}, expected a dict.")
    return value
