"""Raw files of 3DPW and EMDB, made up: the true formats, senseless people; and the script that reads them.

Everyone stands as their joints in rest, turned and moved as a whole by the root, so that the joints follow from the
pose by hand. Every frame carries its number: in the picture's brightness, in the first angle of the body, and in where
the person stands.
"""

import contextlib
import io
import pickle
import runpy
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "prepare_data.py"
WIDTH, HEIGHT, FOCAL = 320, 240, 300.0
INTRINSICS = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])


def prepare_data(folder: Path, *arguments: str) -> int:
    """Run the real script with `folder` for the project's; its exit status."""
    with contextlib.chdir(folder), patch.object(sys, "argv", [SCRIPT.name, *arguments]):
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return end.value.code


class _Python2Pickler(pickle._Pickler):
    """Protocol 2 as Python 2 writes it: text and bytes are one kind of string."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(content: object) -> bytes:
    """As Python 2 and a numpy of its time pickle it."""
    buffer = io.BytesIO()
    _Python2Pickler(buffer, 2).dump(content)
    return with_old_names(buffer.getvalue())


def with_old_names(data: bytes) -> bytes:
    """A pickle of protocol 2, with numpy's modules called as before numpy 2."""
    return data.replace(b"cnumpy._core.", b"cnumpy.core.")


def angle_of(frame: int | np.ndarray) -> float | np.ndarray:
    """The first angle of the body at a frame."""
    return 0.01 * (frame + 1)


def write_pictures(folder: Path, pattern: str, n: int) -> None:
    folder.mkdir(parents=True)
    for frame in range(n):
        picture = np.full((HEIGHT, WIDTH, 3), (5 * frame) % 256, np.uint8)
        cv2.imwrite(str(folder / pattern.format(frame)), picture)


def made_up_people(n: int, people: int, seed: int) -> dict:
    """What both data sets are made from: N frames of people before a camera that turns.

    Returns:
        cam_ext (N, 4, 4); and a list each with an entry a person of rest (24, 3), root (N, 3), trans (N, 3), poses
        (N, 69), betas (10,), joints (N, 24, 3) in the world.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(n)
    cam_ext = np.repeat(np.eye(4)[None], n, axis=0)
    # Upside down against the world, whose y points up, and turning on.
    cam_ext[:, :3, :3] = Rotation.from_euler(
        "xyz", np.stack([np.full(n, np.pi), 0.003 * time, 0 * time], 1)
    ).as_matrix()
    cam_ext[:, :3, 3] = [0.1, 0.2, 5.0]
    world: dict = {"cam_ext": cam_ext}
    for name in ("rest", "root", "trans", "poses", "betas", "joints"):
        world[name] = []
    for person in range(people):
        rest = rng.uniform([-0.4, -0.9, -0.15], [0.4, 0.8, 0.15], (24, 3))
        root = np.stack([0.02 * time, np.full(n, 0.3 + person), 0 * time], axis=1)
        trans = np.stack([0.01 * time - 0.2 + 0.5 * person, np.full(n, 0.1), 0.2 + 0 * time], axis=1)
        poses = rng.normal(0, 0.2, (n, 69))
        poses[:, 0] = angle_of(time)
        turned = np.einsum("nij,kj->nki", Rotation.from_rotvec(root).as_matrix(), rest - rest[0])
        for name, value in (
            ("rest", rest),
            ("root", root),
            ("trans", trans),
            ("poses", poses),
            ("betas", rng.normal(size=10)),
            ("joints", turned + rest[0] + trans[:, None]),
        ):
            world[name].append(value)
    return world


def project(joints: np.ndarray, cam_ext: np.ndarray) -> np.ndarray:
    """World joints (N, J, 3) -> (N, J, 2) px."""
    seen = np.einsum("nij,nkj->nki", cam_ext[:, :3, :3], joints) + cam_ext[:, None, :3, 3]
    return FOCAL * seen[..., :2] / seen[..., 2:] + [WIDTH / 2, HEIGHT / 2]


def write_3dpw(
    folder: Path,
    sequence: str = "downtown_made_up_00",
    split: str = "test",
    frames: int = 40,
    genders: Sequence[str] = ("m", "f"),
    unconfident: Sequence[int] = (),
    invalid: Sequence[int] = (),
    seed: int = 0,
) -> dict:
    """A sequence of 3DPW below `folder`, with pictures; returns what `made_up_people` did.

    Args:
        folder: gets `sequenceFiles/` and `imageFiles/`.
        genders: of the people.
        unconfident: frames without 2D joints; invalid: frames whose camera is not known.
    """
    world = made_up_people(frames, len(genders), seed)
    people = range(len(genders))
    content = {
        "sequence": sequence,
        "genders": list(genders),
        "cam_intrinsics": INTRINSICS,
        "img_frame_ids": 2 * np.arange(frames) + 7,
        "cam_poses": world["cam_ext"].copy(),
        "campose_valid": [np.ones(frames, bool) for _ in people],
        "poses": [np.concatenate([world["root"][i], world["poses"][i]], axis=1) for i in people],
        "trans": world["trans"],
        "betas": world["betas"],
        "jointPositions": [joints.reshape(frames, 72) for joints in world["joints"]],
        "poses2d": [],
        "poses_60Hz": [np.full((2 * frames, 72), 9.0) for _ in people],
    }
    content["cam_poses"][list(invalid)] = np.nan
    for person in people:
        points = project(world["joints"][person], world["cam_ext"])[:, :18]
        poses2d = np.concatenate([points, np.full((frames, 18, 1), 0.8)], axis=2).transpose(0, 2, 1)
        poses2d[list(unconfident)] = 0
        content["poses2d"].append(poses2d)
        content["campose_valid"][person][list(invalid)] = False
    file = folder / "sequenceFiles" / split / f"{sequence}.pkl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(python2_pickle(content))
    write_pictures(folder / "imageFiles" / sequence, "image_{:05d}.jpg", frames)
    return world


def write_emdb(
    folder: Path,
    sequence: str = "P0/00_made_up",
    frames: int = 20,
    gender: str = "female",
    emdb1: bool = True,
    bad: Sequence[int] = (),
    no_box: Sequence[int] = (),
    seed: int = 0,
) -> dict:
    """A sequence of EMDB below `folder`, with pictures; returns what `made_up_people` did.

    Args:
        bad: frames that are not good; no_box: frames without a valid box.
    """
    world = made_up_people(frames, 1, seed)
    keypoints = project(world["joints"][0], world["cam_ext"])
    content = {
        "gender": gender,
        "name": sequence.replace("/", "_"),
        "emdb1": emdb1,
        "emdb2": not emdb1,
        "n_frames": frames,
        "good_frames_mask": ~np.isin(np.arange(frames), list(bad)),
        "camera": {
            "intrinsics": INTRINSICS,
            "extrinsics": world["cam_ext"],
            "width": WIDTH,
            "height": HEIGHT,
        },
        "smpl": {
            "poses_root": world["root"][0],
            "poses_body": world["poses"][0],
            "trans": world["trans"][0],
            "betas": world["betas"][0],
        },
        "kp2d": keypoints,
        "bboxes": {
            "bboxes": np.concatenate([keypoints.min(axis=1), keypoints.max(axis=1)], axis=1),
            "invalid_idxs": np.array(list(no_box), int),
        },
    }
    where = folder / sequence
    write_pictures(where / "images", "{:05d}.jpg", frames)
    name = f"{sequence.replace('/', '_')}_data.pkl"
    (where / name).write_bytes(with_old_names(pickle.dumps(content, 2)))
    return world
