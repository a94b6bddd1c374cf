"""What is said of annotation files that are not what they should be."""

from pathlib import Path

import numpy as np
import pytest

from mega.data.published import PublishedAnnotations

PEOPLE = 3


def columns() -> dict[str, np.ndarray]:
    return {
        "imgname": np.array(["a.jpg"] * PEOPLE),
        "center": np.ones((PEOPLE, 2)),
        "scale": np.ones(PEOPLE),
        "pose_cam": np.zeros((PEOPLE, 72)),
        "shape": np.zeros((PEOPLE, 10)),
        "part": np.zeros((PEOPLE, 24, 3)),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"part": None}, "lacks the field part or j2d"),
        ({"pose_cam": None}, "lacks a pose: pose_cam, pose, or root_orient and pose_body"),
        ({"shape": np.zeros((PEOPLE - 1, 10))}, r"there are 3 imgnames, but shape has shape \(2, 10\)"),
        ({"center": np.float64(3)}, r"there are 3 imgnames, but center has shape \(\)"),
        ({"center": np.full((PEOPLE, 2), "x")}, "the field center holds no numbers"),
        ({"shape": np.zeros((2, 10)), "part": np.zeros((4, 24, 3))}, r"shape has shape \(2, 10\), part has shape \(4,"),
        ({"part": np.zeros((PEOPLE, 24))}, r"the field part has shape \(3, 24\), expected \(P, 24, 3\)"),
        ({"pose_cam": np.zeros((PEOPLE, 63))}, r"the field pose_cam has shape \(3, 63\), expected \(P, 66\)"),
        ({name: array[:0] for name, array in columns().items()}, "holds no rows"),
        ({"shape": np.array([{}] * PEOPLE)}, "cannot be read as annotations"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict, words: str) -> None:
    path = tmp_path / "coco.npz"
    np.savez(path, **{k: v for k, v in (columns() | change).items() if v is not None})
    with pytest.raises(ValueError, match=words) as error:
        PublishedAnnotations.load(path)
    assert str(path) in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "coco.npz"
    np.savez(path, **columns())
    assert len(PublishedAnnotations.load(path)) == PEOPLE
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"coco\.npz cannot be read as annotations"):
            PublishedAnnotations.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"coco\.npz cannot be read as annotations"):
        PublishedAnnotations.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"coco\.npz"):
        PublishedAnnotations.load(path)
    path.mkdir()
    with pytest.raises(ValueError, match=r"coco\.npz is a folder, but a file of annotations"):
        PublishedAnnotations.load(path)
