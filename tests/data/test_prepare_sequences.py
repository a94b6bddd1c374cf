"""Raw 3DPW and EMDB -> annotation files: the real script on made-up raw files, read as in training."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mega.data.prepare_sequences import _table, smooth_boxes
from mega.data.smpl_annotations import SMPLAnnotations
from tests.helpers.raw_files import angle_of, prepare_data, project, python2_pickle, write_3dpw, write_emdb


@pytest.fixture
def prepare(tmp_path: Path, capsys):
    """prepare("3dpw", …) -> (exit status, what was printed, errors), with `tmp_path` for the project's folder."""
    return lambda *arguments: (prepare_data(tmp_path, *arguments), *capsys.readouterr())


def raw(path: Path) -> dict:
    return dict(np.load(path, allow_pickle=False))


def check_rows_agree(root: Path, annotations: SMPLAnnotations, file: dict, world: dict, first: int) -> None:
    """Picture, pose, joints and camera of every row are those of one and the same frame."""
    for row, imgname in enumerate(annotations.imgname):
        frame = int(Path(imgname).stem[-5:])
        assert frame == file["frame"][row]
        assert cv2.imread(str(root / imgname)).mean() == pytest.approx(5 * frame % 256, abs=1)
        person = int(file["person"][row])
        assert annotations.pose[row, 1, 0] == pytest.approx(angle_of(frame))
        assert annotations.betas[row] == pytest.approx(world["betas"][person])
        points = project(world["joints"][person][[frame]], world["cam_ext"][[frame]])[0]
        assert annotations.keypoints2d[row, :, :2] == pytest.approx(points, abs=1e-3)
        assert (annotations.keypoints2d[row, :, 2] == 1).all()
        turn = Rotation.from_matrix(world["cam_ext"][frame, :3, :3]) * Rotation.from_rotvec(
            world["root"][person][frame]
        )
        have = Rotation.from_rotvec(annotations.pose[row, 0])
        assert (have.inv() * turn).magnitude() < 1e-5
        assert frame >= first


def test_3dpw_rows_agree_when_the_first_frames_are_not_used(tmp_path: Path, prepare) -> None:
    """The trap: the first frames have no confident joints, and others no camera. Nothing may be shifted by that."""
    folder = tmp_path / "datasets" / "3dpw"
    gone = {"unconfident": (0, 1, 2, 3, 4, 20, 21, 39), "invalid": (5, 6, 30)}
    world = write_3dpw(folder, frames=40, genders=("m", "f"), **gone)
    code, printed, _ = prepare("3dpw", "dataset.splits=[test]")
    assert code == 0
    path = folder / "3dpw_test.npz"
    annotations, file = SMPLAnnotations.load(path), raw(path)
    check_rows_agree(tmp_path, annotations, file, world, first=7)
    # 20 and 21 lie between frames with joints: their boxes are interpolated.
    used = [i for i in range(7, 39) if i != 30]
    assert file["frame"].tolist() == 2 * used
    assert annotations.gender.tolist() == ["male"] * len(used) + ["female"] * len(used)
    assert set(file["gender"]) == {"m", "f"}
    report = json.loads((folder / "3dpw_test_report.json").read_text())
    wanted = {"kept": 62, "no confident 2D joints": 12, "invalid camera pose": 6}
    assert report["sequences"] == {"downtown_made_up_00": wanted}
    assert report["kept"] == wanted
    assert "62 kept, skipped: 12 no confident 2D joints, 6 invalid camera pose" in printed


def test_3dpw_keeps_the_camera_and_the_translation(tmp_path: Path, prepare) -> None:
    """SMPL with root_orient about its rest pelvis, moved by trans_cam, stands where its joints were projected."""
    world = write_3dpw(tmp_path / "datasets" / "3dpw", genders=("f",))
    assert prepare("3dpw", "dataset.splits=[test]")[0] == 0
    file = raw(tmp_path / "datasets" / "3dpw" / "3dpw_test.npz")
    rest = world["rest"][0]
    for row in range(len(file["frame"])):
        rotation = Rotation.from_rotvec(file["root_orient"][row])
        joints = rotation.apply(rest - rest[0]) + rest[0] + file["trans_cam"][row]
        pixels = joints @ file["cam_int"][row].T
        np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], file["j2d"][row, :, :2], atol=2e-3)
    assert file["pose_body"].shape[1:] == (63,)
    assert set(file["sequence"]) == {"downtown_made_up_00"}


def test_3dpw_boxes_hold_the_person_at_150_of_200_pixels(tmp_path: Path, prepare) -> None:
    write_3dpw(tmp_path / "datasets" / "3dpw", genders=("m",), frames=60)
    assert prepare("3dpw", "dataset.splits=[test]")[0] == 0
    path = tmp_path / "datasets" / "3dpw" / "3dpw_test.npz"
    annotations, file = SMPLAnnotations.load(path), raw(path)
    assert annotations.scale * file["scale"] == pytest.approx(1), "the scale is stored inverted"
    points = annotations.keypoints2d[:, :18, :2]
    low, high = points.min(axis=1), points.max(axis=1)
    side = 200 * annotations.scale
    assert np.linalg.norm(high - low, axis=1) / side == pytest.approx(150 / 200, rel=0.1)
    assert np.abs((low + high) / 2 - annotations.center).max() < 0.05 * side.max()


def test_boxes_are_smooth_and_ignore_unconfident_joints() -> None:
    rng = np.random.default_rng(0)
    corners = np.array([[100.0, 50], [160, 130]])  # 100 px of diagonal
    points = np.concatenate([np.repeat(corners[None], 200, 0), np.ones((200, 2, 1))], axis=2)
    center, side, known = smooth_boxes(points)
    assert known.all()
    assert center == pytest.approx(np.tile([130.0, 90], (200, 1)))
    assert side == pytest.approx(np.full(200, 100 * 200 / 150))
    stray = np.concatenate([points, np.tile([900.0, 900, 0.3], (200, 1, 1))], axis=1)
    np.testing.assert_array_equal(smooth_boxes(stray)[0], center)
    noisy = points + rng.normal(0, 4, points.shape) * [1, 1, 0]
    shaken, _, _ = smooth_boxes(noisy)
    assert (shaken - center).std() < 0.3 * (noisy[..., :2].mean(axis=1) - center).std()
    broken = np.concatenate([points, np.tile([np.nan, 5, 0.9], (200, 1, 1))], axis=1)
    np.testing.assert_array_equal(smooth_boxes(broken)[0], center)
    nobody = smooth_boxes(points * [1, 1, 0])
    assert not nobody[2].any()
    assert np.isfinite(nobody[1]).all()


def median_of_11(values: np.ndarray) -> np.ndarray:
    """Beyond the ends of the track are zeros."""
    padded = np.concatenate([np.zeros(5), values, np.zeros(5)])
    return np.array([sorted(padded[i : i + 11])[5] for i in range(len(values))])


def gaussian_of_8(values: np.ndarray) -> np.ndarray:
    """Beyond the ends of the track is its mirror image, the last value twice; cut off at four sigma."""
    mirrored = np.concatenate([values[:32][::-1], values, values[-32:][::-1]])
    weights = [np.exp(-((offset / 8) ** 2) / 2) for offset in range(-32, 33)]
    smoothed = []
    for i in range(len(values)):
        smoothed.append(sum(w * mirrored[i + j] for j, w in enumerate(weights)) / sum(weights))
    return np.array(smoothed)


def made_up_track(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Joints (N, 18, 3) of somebody who walks and grows, and the true (N, 3) cx, cy, 150 / height of every frame.

    In frames 0 to 6 and the last 4 there are no confident joints, nor in 60 to 66; in frames 30 to 33 and 100 the box
    is somewhere else, as when another person's joints were taken.
    """
    rng = np.random.default_rng(0)
    shape = rng.uniform(0, 1, (18, 2))
    shape[:2] = [[0, 0], [1, 1]]  # the corners
    points, truth = np.zeros((n, 18, 3)), np.zeros((n, 3))
    for i in range(n):
        corner = np.array([200 + 3 * i + 6 * np.sin(i), 300 + 40 * np.sin(i / 20)])
        size = np.array([60 + 0.3 * i, 150 + 20 * np.cos(i / 15)])
        if i in (30, 31, 32, 33, 100):
            corner, size = corner - 700, 5 * size
        points[i, :, :2], points[i, :, 2] = corner + size * shape, 0.9
        truth[i] = *(corner + size / 2), 150 / np.sqrt(size[0] ** 2 + size[1] ** 2)
        points[i, 7] = [-5000, 9000, 0.3]  # not above the limit
    for gone in (range(7), range(60, 67), range(n - 4, n)):
        points[list(gone), :, 2] = 0.1
    return points, truth


def test_3dpw_boxes_are_interpolated_then_a_median_then_a_gaussian() -> None:
    n = 160
    points, truth = made_up_track(n)
    for frame in range(60, 67):  # a straight line from 59 to 67
        truth[frame] = truth[59] + (frame - 59) / 8 * (truth[67] - truth[59])
    track = [gaussian_of_8(median_of_11(column)) for column in truth[7 : n - 4].T]
    center, side, known = smooth_boxes(points)
    assert np.flatnonzero(known).tolist() == list(range(7, n - 4))
    np.testing.assert_allclose(center[known], np.stack(track[:2], axis=1), rtol=1e-9)
    np.testing.assert_allclose(200 / side[known], track[2], rtol=1e-9)
    # The outliers have left no trace: on the way, the box is about 4 / 3 of the person.
    for frame in (31, 100):
        around = 150 / np.delete(truth[frame - 9 : frame + 10, 2], range(5, 14)).mean()
        assert side[frame] == pytest.approx(4 / 3 * around, rel=0.03)
    for end, nearest in ((slice(0, 7), 7), (slice(n - 4, n), n - 5)):
        assert (side[end] == side[nearest]).all()
        assert (center[end] == center[nearest]).all()


@pytest.mark.parametrize("frames", range(1, 13))
def test_short_tracks_have_boxes_too(frames: int) -> None:
    """The zeros that the median filter sees beyond the ends must not win."""
    corners = np.array([[100.0, 50, 1], [160, 130, 1]])
    center, side, known = smooth_boxes(np.repeat(corners[None], frames, 0))
    assert known.all()
    assert center == pytest.approx(np.tile([130.0, 90], (frames, 1)))
    assert side == pytest.approx(np.full(frames, 100 * 4 / 3))


def test_people_who_cannot_be_projected_are_left_out_with_the_reason(tmp_path: Path, prepare) -> None:
    folder = tmp_path / "datasets" / "3dpw"
    world = write_3dpw(folder, frames=10, genders=("m",))
    trans, joints = world["trans"][0].copy(), world["joints"][0].copy()
    joints[4, 7, 2] = 50  # the world's z points at the camera
    trans[6] = np.nan
    file = folder / "sequenceFiles" / "test" / "downtown_made_up_00.pkl"
    change(file, trans=[trans], jointPositions=[joints.reshape(10, 72)])
    assert prepare("3dpw", "dataset.splits=[test]")[0] == 0
    assert raw(folder / "3dpw_test.npz")["frame"].tolist() == [0, 1, 2, 3, 5, 7, 8, 9]
    report = json.loads((folder / "3dpw_test_report.json").read_text())
    assert report["kept"] == {"kept": 8, "joints behind the camera": 1, "not finite": 1}


def test_emdb_keeps_good_frames_with_a_valid_box(tmp_path: Path, prepare) -> None:
    folder = tmp_path / "datasets" / "emdb"
    world = write_emdb(folder, "P0/00_made_up", bad=(0, 1, 7), no_box=(2, 10))
    write_emdb(folder, "P3/04_other_part", emdb1=False)
    code, printed, _ = prepare("emdb")
    assert code == 0
    path = folder / "emdb_test.npz"
    annotations, file = SMPLAnnotations.load(path), raw(path)
    check_rows_agree(tmp_path, annotations, file, world, first=3)
    assert file["frame"].tolist() == [i for i in range(3, 20) if i not in (7, 10)]
    assert set(annotations.gender) == {"female"}
    assert set(file["gender"]) == {"f"}
    assert file["pose_body"].shape[1:] == (69,)
    size = np.ptp(annotations.keypoints2d[..., :2], axis=1).max(axis=1)
    assert 200 * annotations.scale == pytest.approx(1.2 * size, rel=1e-4)
    report = json.loads((folder / "emdb_test_report.json").read_text())
    assert report["sequences"] == {
        "P0/00_made_up": {"kept": 15, "not a good frame": 3, "no valid box": 2},
        "P3/04_other_part": {"kept": 0, "not of emdb1": 20},
    }
    assert "P3/04_other_part" in printed
    assert prepare("emdb", "dataset.part=emdb2")[0] == 0
    assert set(raw(folder / "emdb2.npz")["sequence"]) == {"P3/04_other_part"}
    assert len(SMPLAnnotations.load(path)) == 15, "another part has another file"


def test_emdb2_is_split_by_whole_sequences(tmp_path: Path, prepare) -> None:
    folder = tmp_path / "datasets" / "emdb"
    names = {f"P{i % 4}/{i:02}_made_up" for i in range(10)}
    for name in sorted(names):
        write_emdb(folder, name, frames=3, emdb1=False)
    write_emdb(folder, "P9/99_other_part", frames=3)

    def split(*arguments: str) -> tuple[set[str], set[str]]:
        code, printed, errors = prepare("emdb", "dataset.part=emdb2", *arguments)
        assert code == 0, errors
        assert "P9/99_other_part" not in printed
        files = [raw(folder / f"emdb2_{part}.npz") for part in ("train", "validation")]
        assert sum(len(file["frame"]) for file in files) == 30
        return tuple(set(file["sequence"].tolist()) for file in files)

    train, validation = split("dataset.validation_share=0.3")
    assert len(validation) == 3
    assert train == names - validation
    assert split("dataset.validation_share=0.3") == (train, validation)
    assert split("dataset.validation_share=0.1")[1] < validation, "a larger share adds to a smaller one"
    chosen = {"P1/05_made_up", *(name for name in names if name.startswith("P3/"))}
    assert split("dataset.validation=[P1/05_made_up,P3/*]") == (names - chosen, chosen)
    assert not (folder / "emdb2.npz").exists()
    for arguments, words in (
        (("dataset.validation=[P1/77_gone]",), "no sequence of the part is called P1/77_gone"),
        (("dataset.validation=[P9/*]",), "no sequence of the part is called P9/*"),
        (("dataset.validation=[P*]",), "10 of the part's 10 sequences would be for validation"),
        (("dataset.validation_share=1.5",), "dataset.validation_share=1.5 must lie between 0 and 1"),
        (("dataset.validation_share=0.1", "dataset.validation=[P1/*]"), "not both"),
    ):
        code, _, errors = prepare("emdb", "dataset.part=emdb2", *arguments)
        assert (code, words in errors) == (1, True), errors


def test_files_of_earlier_versions_are_refused_with_the_command_to_make_them_again(tmp_path: Path, prepare) -> None:
    folder = tmp_path / "datasets" / "3dpw"
    write_3dpw(folder, "courtyard_a_00", frames=8, genders=("m",))
    write_emdb(tmp_path / "datasets" / "emdb", frames=4)
    assert prepare("3dpw", "dataset.splits=[test]")[0] == 0
    assert prepare("3dpw", "dataset.splits=[test]", "dataset.sequences=[courtyard_*]", "dataset.subset=mine")[0] == 0
    assert prepare("emdb")[0] == 0
    commands = {
        folder / "3dpw_test.npz": "3dpw 'dataset.splits=[test]'",
        folder / "mine.npz": "3dpw 'dataset.sequences=[courtyard_a_00]' dataset.subset=mine",
    }
    emdb = tmp_path / "datasets" / "emdb" / "emdb_test.npz"
    for path in (*commands, emdb):
        assert len(SMPLAnnotations.load(path)) in (4, 8)
        columns = raw(path)
        assert columns.pop("format_version") == 2
        np.savez(path, **columns)
    for path, command in commands.items():
        with pytest.raises(ValueError, match="boxes for 3DPW were 12 % too wide") as error:
            SMPLAnnotations.load(path)
        assert f"{path} was made" in str(error.value)
        assert f"python tools/prepare_data.py {command} dataset.folder={folder}" in str(error.value)
    assert len(SMPLAnnotations.load(emdb)) == 4, "the boxes of EMDB have not changed"


def change(file: Path, **fields: object) -> None:
    """Write a raw file anew with some fields changed, or left out if None."""
    content = pickle.loads(file.read_bytes(), encoding="latin1") | fields
    file.write_bytes(python2_pickle({name: value for name, value in content.items() if value is not None}))


def test_bad_sequences_are_reported_and_the_others_kept(tmp_path: Path, prepare) -> None:
    folder = tmp_path / "datasets" / "3dpw"
    names = ["a_cut", "b_lacks", "c_short", "d_gender", "e_no_picture", "f_good"]
    for name in names:
        write_3dpw(folder, name, frames=12, genders=("m",))
    files = {name: folder / "sequenceFiles" / "test" / f"{name}.pkl" for name in names}
    files["a_cut"].write_bytes(files["a_cut"].read_bytes()[:1000])
    change(files["b_lacks"], trans=None)
    change(files["c_short"], poses=[np.zeros((11, 72))])
    change(files["d_gender"], genders=["x"])
    (folder / "imageFiles" / "e_no_picture" / "image_00003.jpg").unlink()
    code, printed, errors = prepare("3dpw", "dataset.splits=[test]")
    assert code == 1
    assert "5 problems" in errors
    file = raw(folder / "3dpw_test.npz")
    assert file["frame"].tolist() == [i for i in range(12) if i != 3] + list(range(12))
    problems = json.loads((folder / "3dpw_test_report.json").read_text())["problems"]
    wanted = [
        "a_cut.pkl cannot be read as a pickle",
        "b_lacks.pkl lacks the field trans",
        r"c_short.pkl: the field poses[0] has shape (11, 72), expected (12, 72)",
        "d_gender.pkl: the field genders[0] cannot be used: The gender 'x' is none of",
        "e_no_picture.pkl: 1 pictures are missing, the first is datasets/3dpw/imageFiles/e_no_picture/image_00003.jpg",
    ]
    for problem, words in zip(problems, wanted, strict=True):
        assert words in problem
        assert problem in printed


def test_an_existing_file_is_kept_if_no_frame_can_be_used(tmp_path: Path, prepare) -> None:
    folder = tmp_path / "datasets" / "3dpw"
    write_3dpw(folder, frames=8, invalid=range(8))
    (folder / "3dpw_test.npz").write_bytes(b"the old one")
    code, printed, _ = prepare("3dpw", "dataset.splits=[test]")
    assert code == 1
    assert "3dpw_test.npz is not written: no frame can be used" in printed
    assert (folder / "3dpw_test.npz").read_bytes() == b"the old one"


def test_a_subset_of_3dpw_is_chosen_from_all_splits(tmp_path: Path, prepare) -> None:
    folder = tmp_path / "datasets" / "3dpw"
    for split, name in (("train", "courtyard_box_00"), ("validation", "outdoors_golf_00"), ("test", "flat_guitar_01")):
        write_3dpw(folder, name, split, frames=5, genders=("f",))
    assert prepare("3dpw", "dataset.sequences=[courtyard_*,flat_guitar_01]", "dataset.subset=some")[0] == 0
    assert sorted(set(raw(folder / "some.npz")["sequence"])) == ["courtyard_box_00", "flat_guitar_01"]
    code, _, errors = prepare("3dpw", "dataset.sequences=[courtyard_*,nowhere_00]", "dataset.subset=some")
    assert (code, "is called nowhere_00" in errors) == (1, True)
    assert prepare("dataset=3dpw")[0] == 0
    assert sorted(path.name for path in folder.glob("3dpw_*.npz")) == [
        *("3dpw_test.npz", "3dpw_train.npz", "3dpw_validation.npz")
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "python tools/prepare_data.py 3dpw | emdb | h36m | mpi_inf_3dhp | bedlam_check"),
        (("3dpw",), "Unpack sequenceFiles.zip and imageFiles.zip"),
        (("3dpw", "dataset.splits=[tset]"), "dataset.splits=[tset] must be a list of train | validation | test"),
        (("3dpw", "dataset.subset=some"), "Give dataset.sequences and dataset.subset"),
        (("emdb",), "There are no sequences (P*/*/*_data.pkl) in datasets/emdb"),
        (("emdb", "dataset.part=emdb3"), "dataset.part=emdb3 must be emdb1 or emdb2"),
        (("3dwp",), "dataset=3dwp is not known; choose from 3dpw, bedlam_check, emdb"),
    ],
)
def test_an_error_says_how_to_correct_the_command(prepare, arguments: tuple[str, ...], words: str) -> None:
    code, _, errors = prepare(*arguments)
    assert code == 1
    assert words in errors


def test_a_table_of_columns_of_different_length_cannot_be_made(tmp_path: Path) -> None:
    columns = {"cam_ext": np.tile(np.eye(4), (3, 1, 1)), "root_orient": np.zeros((3, 3)), "j2d": np.zeros((3, 24, 2))}
    (tmp_path / "0.jpg").touch()

    def table(side: list[float]) -> dict[str, np.ndarray]:
        first = np.array([False, False, True])
        return _table(tmp_path, "{}.jpg", {"sequence": "a"}, columns | {"side": np.array(side)}, {"first": first})

    made = table([1.0, np.nan, 1.0])
    assert made["sequence"].tolist() == ["a"] * 3
    assert made["reason"].tolist() == ["", "not finite", "first"]
    with pytest.raises(ValueError, match=r"differ in length.*'side': 2"):
        table([1.0, 1.0])
