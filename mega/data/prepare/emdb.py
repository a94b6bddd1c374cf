"""EMDB: `P*/SEQ/*_data.pkl` -> the annotations of its test split.

Source: Kaufmann et al., EMDB: The Electromagnetic Database of Global 3D Human Pose and Shape in the Wild, ICCV 2023.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mega.data.prepare.annotate import annotate, skip_missing_pictures
from mega.data.prepare.cameras import is_rigid, turn_to_camera
from mega.data.prepare.frames import Frames, gender_letter, repeated
from mega.data.prepare.pickles import load_pickle, pick, take
from mega.geometry import box_center_and_side

PARTS = ("emdb1", "emdb2")
_MARGIN = 1.2


def prepare_emdb(folder: str, part: str = "emdb1", name: str = "emdb_test") -> int:
    """Write `folder/{name}.npz`: the sequences of a part, their good frames with a valid box.

    Args:
        folder: with `P0/` … `P9/`, from the project's root.
        part: emdb1, on which single pictures are tested, or emdb2.
        name: of the file.

    Returns:
        How many problems there were; each is printed.

    Raises:
        FileNotFoundError: if there are no sequences.
        ValueError: for an unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"dataset.part={part}, but it is one of {', '.join(PARTS)}.")
    files = sorted(Path(folder).glob("P*/*/*_data.pkl"))
    if not files:
        raise FileNotFoundError(
            f"There are no sequences (P*/*/*_data.pkl) in {folder}. Unpack the files of "
            "https://eth-ait.github.io/emdb there, so that P0, P1 … lie in it."
        )

    def read(file: Path) -> tuple[str, Frames]:
        return f"{file.parent.parent.name}/{file.parent.name}", read_sequence(file, part)

    return annotate(files, read, Path(folder) / f"{name}.npz")


def read_sequence(file: Path, part: str = "emdb1") -> Frames:
    """The person in every frame of a sequence; rows that cannot be used have a reason.

    Raises ValueError that names file and field.
    """
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
        sequence=repeated(f"{file.parent.parent.name}/{file.parent.name}", n),
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
