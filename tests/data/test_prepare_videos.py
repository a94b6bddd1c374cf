"""Pictures from videos: the real script on videos whose frames encode their number as brightness."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.raw_files import prepare_data

STEP = 10  # of brightness, from one frame to the next


@pytest.fixture
def prepare(tmp_path: Path, capsys):
    """prepare("h36m", …) -> (exit status, what was printed, errors), with `tmp_path` for the project's folder."""
    return lambda *arguments: (prepare_data(tmp_path, *arguments), *capsys.readouterr())


def write_video(path: Path, frames: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = cv2.VideoWriter.fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(path), codec, 25, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((48, 64, 3), STEP * i, np.uint8))
    writer.release()


def write_labels(path: Path, names: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, imgname=np.array(names))
    return path.parent


def frame_of(path: Path) -> int:
    """The index, from 0, of the frame that a picture shows."""
    return round(cv2.imread(str(path)).mean() / STEP)


def test_h36m_pictures_are_the_frames_in_their_names(tmp_path: Path, prepare) -> None:
    names = [
        "S1_Directions_1.54138969_000001.jpg",
        "S1_Directions_1.54138969_000016.jpg",
        "S5_Eating.55011271_000006.jpg",
    ]
    folder = write_labels(tmp_path / "datasets" / "h36m_train" / "h36m_train.npz", [*names, names[0]])
    write_video(folder / "videos" / "S1" / "Videos" / "Directions 1.54138969.mp4", 20)
    write_video(folder / "videos" / "S5" / "Videos" / "Eating.55011271.mp4", 10)
    code, printed, _ = prepare("h36m")
    assert code == 0
    assert [frame_of(folder / name) for name in names] == [0, 15, 5]
    assert "3 pictures named, 0 were there, 3 extracted" in printed
    report = json.loads((folder / "h36m_train_report.json").read_text())
    assert sorted(report["videos"].values()) == [1, 2]


def test_both_namings_of_h36m_are_read(tmp_path: Path, prepare) -> None:
    names = ["Images/S1/Directions_1.54138969/000004.jpg", "Images/S11/WalkDog.60457274/000001.jpg"]
    names += ["S1/S1_Directions_1.54138969/S1_Directions_1.54138969_000007.jpg"]
    written = np.array([names[0], *(name.replace("/", "\\").encode() for name in names[1:])], object)
    folder = write_labels(tmp_path / "datasets" / "h36m_train" / "h36m_train.npz", written)
    write_video(folder / "videos" / "S1" / "Videos" / "Directions 1.54138969.mp4", 10)
    write_video(folder / "videos" / "S11" / "Videos" / "WalkDog.60457274.mp4", 5)
    code, printed, _ = prepare("h36m")
    assert code == 0, printed
    assert [frame_of(folder / name) for name in names] == [3, 0, 6]


def test_both_namings_of_mpi_inf_3dhp_are_read(tmp_path: Path, prepare) -> None:
    names = ["S1/Seq2/imageFrames/video_4/frame_000003.jpg", "images/S8_Seq1_0_000012.jpg"]
    folder = write_labels(tmp_path / "datasets" / "mpi-inf-3dhp" / "mpi_inf_3dhp_train.npz", names)
    write_video(folder / "videos" / "S1" / "Seq2" / "imageSequence" / "video_4.avi", 15)
    write_video(folder / "videos" / "S8" / "Seq1" / "imageSequence" / "video_0.avi", 15)
    assert prepare("mpi_inf_3dhp")[0] == 0
    assert [frame_of(folder / name) for name in names] == [2, 11]


def test_an_interrupted_run_resumes_and_keeps_existing_pictures(tmp_path: Path, prepare) -> None:
    names = [f"S1_Walk.1_{i:06d}.jpg" for i in (1, 4, 9)]
    folder = write_labels(tmp_path / "datasets" / "h36m_train" / "h36m_train.npz", names)
    write_video(folder / "videos" / "S1" / "Videos" / "Walk.1.mp4", 12)
    (folder / names[1]).write_bytes(b"there already")
    code, printed, _ = prepare("h36m")
    assert (code, "1 were there, 2 extracted" in printed) == (0, True)
    assert (folder / names[1]).read_bytes() == b"there already"
    assert [frame_of(folder / names[i]) for i in (0, 2)] == [0, 8]
    assert not list(folder.glob(".*")), "no temporary file is left"


def test_pictures_that_cannot_be_extracted_are_reported_and_the_others_extracted(tmp_path: Path, prepare) -> None:
    names = [
        *("S1_Walk.1_000002.jpg", "S1_Walk.1_000099.jpg", "S1_Gone.1_000001.jpg", "S1_Gone.1_000002.jpg"),
        *("S1_Broken.1_000001.jpg", "odd.jpg", "../S1_Walk.1_000001.jpg", "S1_Walk.1_000000.jpg"),
    ]
    folder = write_labels(tmp_path / "datasets" / "h36m_train" / "h36m_train.npz", names)
    videos = folder / "videos" / "S1" / "Videos"
    write_video(videos / "Walk.1.mp4", 5)
    (videos / "Broken.1.mp4").write_bytes(b"no video")
    code, printed, errors = prepare("h36m")
    assert code == 1
    assert "6 problems" in errors
    assert frame_of(folder / names[0]) == 1
    assert not (folder.parent / "S1_Walk.1_000001.jpg").exists()
    for words in (
        "Walk.1.mp4 cannot be read at frame 98 (from 0), it gave 5 frames: 1 pictures of it are not made",
        "2 pictures, the first is S1_Gone.1_000001.jpg: the video",
        "Gone.1.mp4 is missing",
        "Broken.1.mp4 cannot be read at frame 0 (from 0), it gave 0 frames",
        "the first is odd.jpg: none of dataset.patterns fits the name",
        "../S1_Walk.1_000001.jpg: the name leads out of the folder",
        "S1_Walk.1_000000.jpg: the number of the frame is below that of the first, 1",
    ):
        assert words in printed


def test_other_names_need_only_another_pattern(tmp_path: Path, prepare) -> None:
    folder = write_labels(tmp_path / "datasets" / "h36m_train" / "h36m_train.npz", ["walk-0.png", "walk-7.png"])
    write_video(tmp_path / "elsewhere" / "walk.avi", 10)
    pattern, video = r"dataset.patterns=['(?P<who>\w+)-(?P<frame>\d+).png']", "dataset.video='{who}.avi'"
    code, printed, _ = prepare("h36m", pattern, video, "dataset.first_frame=0", "dataset.videos=elsewhere")
    assert (code, "2 extracted" in printed) == (0, True)
    assert frame_of(folder / "walk-7.png") == 7
    for wrong, words in (("'('", "is no regular expression"), ("'a.png'", "has no group")):
        code, _, errors = prepare("h36m", f"dataset.patterns=[{wrong}]")
        assert (code, words in errors) == (1, True)


def test_missing_labels_and_videos_are_reported(tmp_path: Path, prepare) -> None:
    code, _, errors = prepare("h36m")
    assert (code, "h36m_train.npz is missing: H36M with BEDLAM's labels, from https" in errors) == (1, True)
    write_labels(tmp_path / "datasets" / "h36m_train" / "h36m_train.npz", ["S1_Walk.1_000001.jpg"])
    code, _, errors = prepare("h36m")
    assert (code, "unpack them there or set dataset.videos" in errors) == (1, True)
    np.savez(tmp_path / "datasets" / "h36m_train" / "h36m_train.npz", center=np.zeros(3))
    code, _, errors = prepare("h36m")
    assert (code, "h36m_train.npz lacks the field imgname" in errors) == (1, True)
