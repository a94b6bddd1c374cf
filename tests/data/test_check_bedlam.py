"""The check of BEDLAM's files reports everything that is wrong, and changes nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.raw_files import prepare_data

MOTION = {"poses": np.zeros((7, 165)), "betas": np.zeros(11), "gender": np.array("neutral"), "trans": np.zeros((7, 3))}
PEOPLE = {
    "imgname": np.array(["seq_0/0.png", "closeup/1.png", "seq_0/2.png"]),
    "center": np.ones((3, 2)),
    "scale": np.ones(3),
    "pose_cam": np.zeros((3, 165)),
    "shape": np.zeros((3, 11)),
    "gender": np.array(["neutral", "m", "female"]),
    "gtkps": np.zeros((3, 127, 3)),
}


@pytest.fixture
def check(tmp_path: Path, capsys):
    """check("dataset.KEY=VALUE", …) -> (exit status, what was printed, errors)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        before = contents(tmp_path)
        code = prepare_data(tmp_path, "bedlam_check", *arguments)
        after = contents(tmp_path)
        assert {name: after[name] for name in before} == before
        assert set(after) - set(before) <= {"report.json"}
        return code, *capsys.readouterr()

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write(path: Path, columns: dict, **changes: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: value for name, value in (columns | changes).items() if value is not None})


def test_animations_are_counted_by_gender_and_other_files_listed(tmp_path: Path, check) -> None:
    folder = tmp_path / "datasets" / "bedlam_animations"
    write(folder / "anna" / "0001" / "motion_seq.npz", MOTION)
    write(folder / "bert" / "0002" / "motion_seq.npz", MOTION, gender=np.array("m"), betas=np.zeros(10), fps=30)
    write(folder / "deep" / "a" / "b" / "motion_seq.npz", MOTION, gender=np.array("male"), poses=np.zeros((7, 72)))
    write(folder / "anna" / "shape.npz", {"betas": np.zeros(11)})
    code, printed, _ = check()
    assert code == 0
    assert "4 files, 3 fine, 1 not motions, 0 wrong" in printed
    assert "21 frames, 1 neutral, 2 with 11 betas, 2 without a frame rate, 2 male, 1 with 10 betas, 1 at 30 " in printed
    assert "anna/shape.npz: not a motion, its path holds `shape`" in printed


BAD_MOTIONS = {
    "short": ({"poses": np.zeros((7, 63))}, "poses has shape (7, 63) of float64, expected numbers (7, 66)"),
    "empty": ({"poses": np.zeros((0, 165)), "trans": None}, "poses holds no frames"),
    "nan": ({"poses": np.where(np.arange(7)[:, None] == 4, np.nan, np.zeros((7, 165)))}, "in 1 rows, the first is 4"),
    "none": ({"poses": None, "trans": None}, "lacks poses"),
    "betas": ({"betas": np.zeros(0)}, "betas has shape (0,)"),
    "rate": ({"mocap_frame_rate": 0}, "mocap_frame_rate is 0, expected 1 to 1000 frames per second"),
    "betas_of_frames": ({"betas": np.zeros((7, 10))}, "betas has shape (7, 10)"),
    "two_genders": ({"gender": np.array(["m", "f"])}, "gender has shape (2,), expected one word"),
    "gender": ({"gender": np.array("x")}, "The gender 'x' is none of"),
    "no_gender": ({"gender": None}, "lacks gender"),
    "trans": ({"trans": np.zeros((6, 3))}, "trans has shape (6, 3) of float64, expected numbers (7, 3)"),
    "object": ({"poses": np.array([{}] * 7)}, "the field poses holds objects other than numbers and text"),
}


def test_every_bad_animation_is_reported_with_the_reason(tmp_path: Path, check) -> None:
    folder = tmp_path / "datasets" / "bedlam_animations"
    for name, (changes, _) in BAD_MOTIONS.items():
        write(folder / name / "motion_seq.npz", MOTION, **changes)
    (folder / "cut").mkdir()
    (folder / "cut" / "motion_seq.npz").write_bytes(b"PK cut")
    write(folder / "good" / "motion_seq.npz", MOTION)
    code, printed, errors = check("dataset.report=report.json")
    assert code == 1
    assert f"{len(BAD_MOTIONS) + 1} problems" in errors
    assert f"{len(BAD_MOTIONS) + 2} files, 1 fine" in printed
    said = json.loads((tmp_path / "report.json").read_text())["files"]
    assert len(said) == len(BAD_MOTIONS) + 2
    for name, (_, words) in BAD_MOTIONS.items():
        file = f"datasets/bedlam_animations/{name}/motion_seq.npz"
        assert words in said[file]
        assert f"  {file}: {said[file]}" in printed
    assert "cannot be read" in said["datasets/bedlam_animations/cut/motion_seq.npz"]


def test_annotations_are_checked_too(tmp_path: Path, check) -> None:
    write(tmp_path / "labels" / "good.npz", PEOPLE)
    write(tmp_path / "labels" / "scale.npz", PEOPLE, scale=np.array([1.0, 0, -1]), center=np.full((3, 2), np.inf))
    write(tmp_path / "labels" / "rows.npz", PEOPLE, gtkps=np.zeros((2, 127, 3)), shape=None)
    code, printed, _ = check("dataset.animations=null", "dataset.annotations=[labels]")
    assert code == 1
    assert "3 files, 1 fine, 0 not motions, 2 wrong" in printed
    assert "3 people, 1 in pictures stored rotated (closeup), 1 neutral, 1 male, 1 female" in printed
    assert "3 of 3 rows cannot be used: row 0 (seq_0/0.png): center is not finite; row 1 (closeup/1.png): " in printed
    assert "row 2 (seq_0/2.png): scale is -1.0, it must be above 0, center is not finite" in printed
    assert (
        "the field gtkps has shape (2, 127, 3), expected (3, 127, 3) or more for 3 imgnames; "
        "lacks the field betas or shape" in printed
    )
    assert check("dataset.animations=null", "dataset.annotations=[labels/good.npz]")[0] == 0


def test_annotations_stored_as_objects_are_checked_too(tmp_path: Path, check) -> None:
    objects = {name: column.astype(object) for name, column in PEOPLE.items()}
    write(tmp_path / "labels" / "objects.npz", objects, sub=np.array([{}] * 3))
    write(tmp_path / "labels" / "wrong.npz", PEOPLE, gender=np.array(["m", None, "f"], object))
    code, printed, _ = check("dataset.animations=null", "dataset.annotations=[labels]")
    assert code == 1
    assert "2 files, 1 fine, 0 not motions, 1 wrong" in printed
    assert "the field gender holds objects other than numbers and text: they are of the types NoneType, str" in printed


def test_missing_animations_are_reported(tmp_path: Path, check) -> None:
    code, _, errors = check()
    assert (code, "bedlam_animations is missing: BEDLAM's animations, from https" in errors) == (1, True)
    (tmp_path / "datasets" / "bedlam_animations").mkdir(parents=True)
    code, _, errors = check()
    assert (code, "There are no .npz files in datasets/bedlam_animations" in errors) == (1, True)
