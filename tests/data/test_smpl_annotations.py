"""The user's annotation files: what is read from published ones, and what is reported of invalid ones."""

import io
import os
import pathlib
import pickle
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mega.bodies import SMPLHBody
from mega.data.motions import check_bedlam
from mega.data.smpl_annotations import SMPLAnnotations, read_smpl_picture
from mega.data.smpl_images import SMPLImages
from mega.data.synthetic_images import read_rgb
from mega.evaluation import test_sets as testsets
from mega.evaluation.test_sets import people_of_file
from mega.external_files import _say_once
from mega.predictor import Crop
from tests.golden.golden import GOLDEN_DIR
from tests.helpers.raw_files import python2_pickle, with_old_names
from tools.check_setup import check_setup

PEOPLE = 3
INPUTS = GOLDEN_DIR.parent / "inputs"


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
        ({"part": None}, "lacks the field j2d or part"),
        ({"pose_cam": None}, "lacks the field pose_cam or pose or root_orient and pose_body"),
        (
            {"shape": np.zeros((PEOPLE - 1, 10))},
            r"the field shape has shape \(2, 10\), expected \(3, 10\) or more for 3 imgnames",
        ),
        ({"center": np.float64(3)}, r"the field center has shape \(\), expected \(3, 2\) or more for 3 imgnames"),
        ({"center": np.full((PEOPLE, 2), "x")}, "the field center holds no numbers"),
        (
            {"shape": np.zeros((2, 10)), "part": np.zeros((4, 24, 3))},
            r"part has shape \(4, 24, 3\), .*; the field shape has shape \(2, 10\),",
        ),
        ({"part": np.zeros((PEOPLE, 24))}, r"the field part has shape \(3, 24\), expected \(3, 24, 3\)"),
        ({"pose_cam": np.zeros((PEOPLE, 63))}, r"the field pose_cam has shape \(3, 63\), expected \(3, 66\)"),
        ({name: array[:0] for name, array in columns().items()}, "holds no rows"),
        ({"shape": np.array([{}] * PEOPLE)}, "cannot be read as arrays"),
    ],
)
def test_invalid_fields_are_reported(tmp_path: Path, change: dict, words: str) -> None:
    path = tmp_path / "coco.npz"
    np.savez(path, **{k: v for k, v in (columns() | change).items() if v is not None})
    with pytest.raises(ValueError, match=words) as error:
        SMPLAnnotations.load(path)
    assert str(path) in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "coco.npz"
    np.savez(path, **columns())
    assert len(SMPLAnnotations.load(path)) == PEOPLE
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"coco\.npz cannot be read as arrays"):
            SMPLAnnotations.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"coco\.npz cannot be read as arrays"):
        SMPLAnnotations.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"coco\.npz"):
        SMPLAnnotations.load(path)
    path.mkdir()
    with pytest.raises(ValueError, match=r"coco\.npz is a folder, but a file is expected"):
        SMPLAnnotations.load(path)


def published_3dpw(n: int = PEOPLE) -> dict[str, np.ndarray]:
    """What the published test files of 3DPW and EMDB hold: the third column of `j2d` is the depth."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(0, 60, (n, 24, 2)), rng.uniform(-1, 9, (n, 24, 1))], axis=2)
    return {
        "imgname": np.array([f"datasets/3DPW/imageFiles/downtown_arguing_00/image_{i:05d}.jpg" for i in range(n)]),
        "center": np.tile([40.0, 30], (n, 1)),
        "scale": np.full(n, 4.0),
        "root_orient": rng.normal(size=(n, 3)),
        "pose_body": rng.normal(size=(n, 63)),
        "betas": rng.normal(size=(n, 10)),
        "gender": np.array(["m", "f", "m"][:n]),
        "j2d": points,
    }


def write(path: Path, columns: dict[str, np.ndarray], pictures: Path | None = None) -> Path:
    """A file, and with `pictures` the pictures that it names below that folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **columns)
    for name in [] if pictures is None else columns["imgname"].tolist():
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(pictures / name), np.full((60, 80, 3), 90, np.uint8))
    return path


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("datasets/3dpw/3dpw_test.npz", "datasets/3DPW/3DPW_test.npz"),
        ("datasets/3dpw/3dpw_validation.npz", "datasets/3DPW/3DPW_validation.npz"),
        ("datasets/emdb/emdb_test.npz", "datasets/EMDB/test.npz"),
    ],
)
def test_files_at_the_published_places_are_found(tmp_path, monkeypatch, capsys, ours: str, published: str) -> None:
    monkeypatch.chdir(tmp_path)
    _say_once.cache_clear()
    with pytest.raises(FileNotFoundError, match=ours):
        SMPLImages(Path(ours), root=Path(), crop_size=32)
    write(Path(published), published_3dpw(), Path())
    for path in (ours, tmp_path / ours):
        data = SMPLImages(Path(path), root=Path(), crop_size=32)
        assert len(data) == PEOPLE
        assert f"{path} is not there: {data.path} is read." in capsys.readouterr().out
        assert str(data.path).endswith(published)
        assert data[2]["image"].shape == (3, 32, 32)
    SMPLImages(Path(ours), root=Path())
    assert capsys.readouterr().out == "", "said once"
    write(Path(ours), published_3dpw(2), Path())
    assert len(SMPLImages(Path(ours), root=Path())) == 2
    assert f"{ours} is read, and {published} is not" in capsys.readouterr().out


def test_every_joint_of_3dpw_counts_and_parts_by_their_confidence(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    depths = published_3dpw()
    assert (depths["j2d"][..., 2] < 0).any()
    data = SMPLImages(write(tmp_path / "test.npz", depths, tmp_path), crop_size=32)
    for i in range(PEOPLE):
        weights = data[i]["keypoints2d"][:, 2]
        assert (weights[:17] == 0).all()
        assert weights[17:].numpy() == pytest.approx(41 / 24)
    parts = columns() | {"imgname": np.array(["a.jpg"] * PEOPLE), "scale": np.full(PEOPLE, 0.2)}
    parts["part"] = np.tile(np.linspace(0, 1, 24)[None, :, None], (PEOPLE, 1, 3))
    data = SMPLImages(write(tmp_path / "coco" / "coco.npz", parts, tmp_path / "coco"), crop_size=32)
    known = np.linspace(0, 1, 24)[[*range(13), 18, 14, 16, 17]]
    assert data[0]["keypoints2d"][:17, 2].numpy() == pytest.approx(known * 41 / 17)


def test_pictures_are_found_from_the_project_or_from_the_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    body = SMPLHBody.__new__(SMPLHBody)  # nothing of it is needed to find pictures
    monkeypatch.setattr(testsets, "keypoint_regressor", lambda body: None)
    monkeypatch.setattr(SMPLHBody, "h36m_regressor", np.zeros(17), raising=False)
    monkeypatch.setattr(SMPLHBody, "keypoint_regressor", np.zeros(24), raising=False)
    crop, path = Crop(32, 1.0), Path("files/people.npz")
    write(path, published_3dpw())
    name = published_3dpw()["imgname"][0]
    with pytest.raises(ValueError, match="3 of the 3 images") as error:
        people_of_file(body, crop, path)
    assert f"looked for at files/{name} and at {name}." in str(error.value)
    write(path, published_3dpw(), Path())
    assert people_of_file(body, crop, path).items[0]["image"].shape == (3, 32, 32)
    with pytest.raises(ValueError, match=rf"looked for at elsewhere/{name}\."):
        people_of_file(body, crop, path, root="elsewhere")
    write(path, published_3dpw(), Path("files"))
    people = people_of_file(body, crop, path)
    assert people.items.root == Path("files"), "the file's own folder comes first"
    (Path("files") / name).unlink()
    with pytest.raises(ValueError, match="1 of the 3 images"):
        people_of_file(body, crop, path)


@pytest.mark.parametrize("folder", ["plain", "closeup_set"])
@pytest.mark.parametrize("name", ["a/closeup_1.png", "closeup/1.png", "a/1.png"])
def test_only_the_name_in_the_file_says_that_a_picture_is_stored_rotated(
    tmp_path: Path, folder: str, name: str
) -> None:
    stored = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    path = tmp_path / folder / name
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), stored)
    upright = np.rot90(stored, -1) if "closeup" in name else stored
    np.testing.assert_array_equal(read_smpl_picture(tmp_path / folder, name), upright[..., ::-1])


@pytest.mark.parametrize("absolute", [False, True])
def test_the_folder_of_a_data_set_rotates_no_picture(tmp_path, monkeypatch, capsys, absolute: bool) -> None:
    """Neither in training nor in a test, nor in the check of BEDLAM's files; not of absolute names either."""
    body = SMPLHBody.__new__(SMPLHBody)  # nothing of it is needed to read pictures
    monkeypatch.setattr(testsets, "keypoint_regressor", lambda body: None)
    monkeypatch.setattr(SMPLHBody, "h36m_regressor", np.zeros(17), raising=False)
    monkeypatch.setattr(SMPLHBody, "keypoint_regressor", np.zeros(24), raising=False)
    picture = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    crops = {}
    for project in ("plain", "closeup_project"):
        folder = tmp_path / project / "labels"
        pictures = tmp_path / project / "images"
        pictures.mkdir(parents=True)
        folder.mkdir()
        place = pictures if absolute else Path("../images")
        for name, files in (("two", ("1.png", "closeup_1.png")), ("three", ("1.png", "2.png", "closeup/1.png"))):
            for file in files:
                (pictures / file).parent.mkdir(exist_ok=True)
                cv2.imwrite(str(pictures / file), picture)
            rows = {key: np.repeat(value[:1], len(files), axis=0) for key, value in columns().items()}
            rows |= {"center": np.full((len(files), 2), 40.0), "scale": np.full(len(files), 0.4)}
            np.savez(folder / f"{name}.npz", **rows | {"imgname": np.array([str(place / file) for file in files])})
        training = SMPLImages(folder / "two.npz", crop_size=32, training=True)
        test = people_of_file(body, Crop(32, 1.0), folder / "three.npz").items
        crops[project] = np.array([items[i]["image"].numpy() for items in (training, test) for i in range(len(items))])
        check_bedlam(None, [str(folder)])
        assert "2 in pictures stored rotated (closeup)" in capsys.readouterr().out
    plain = crops["plain"]
    np.testing.assert_array_equal(crops["closeup_project"], plain)
    for i, turned in enumerate((False, True, False, False, True)):
        np.testing.assert_allclose(plain[i], np.rot90(plain[0], -1, (1, 2)) if turned else plain[0], atol=1e-3)


def as_bytes(names: list[str]) -> np.ndarray:
    return np.array([name.encode() for name in names])


@pytest.mark.parametrize("form", [np.array, as_bytes, lambda names: as_bytes(names).astype(object)])
def test_names_from_windows_and_bytes_are_read(tmp_path: Path, form) -> None:
    names = ["bilder\\Straße\\a.jpg", "bilder/closeup/b.jpg", "bilder\\closeup\\c.jpg"]
    table = columns() | {"gender": form(["male", "f", "neutral"])}
    slashed = np.array([name.replace("\\", "/") for name in names])
    path = write(tmp_path / "coco.npz", table | {"imgname": slashed, "scale": np.full(PEOPLE, 0.2)}, tmp_path)
    plain = SMPLImages(path, crop_size=32)
    write(path, table | {"imgname": form(names), "scale": np.full(PEOPLE, 0.2)})
    windows = SMPLImages(path, crop_size=32)
    assert windows.annotations.imgname.tolist() == slashed.tolist()
    assert windows.annotations.gender.tolist() == ["male", "female", "neutral"]
    for i in range(PEOPLE):
        np.testing.assert_array_equal(windows[i]["image"], plain[i]["image"])


def test_names_of_unknown_bytes_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "coco.npz", columns() | {"imgname": np.array([b"Jos\xe9.jpg"] * PEOPLE)})
    with pytest.raises(ValueError, match=r"coco\.npz: the field imgname holds no text: 'utf-8' codec can't decode"):
        SMPLAnnotations.load(path)


@pytest.mark.skipif(not INPUTS.is_dir(), reason=f"no {INPUTS}")
def test_the_name_of_a_folder_rotates_no_picture() -> None:
    items = [SMPLImages(INPUTS / f"{name}_project/coco/coco.npz", 64)[0] for name in ("plain", "closeup")]
    for name, value in items[0].items():
        assert (np.asarray(value) == np.asarray(items[1][name])).all(), name


def test_setup_check_finds_published_files_and_reports_faults(tmp_path, capsys) -> None:
    _say_once.cache_clear()
    folder = tmp_path / "datasets"
    write(folder / "3DPW" / "3DPW_test.npz", published_3dpw(), tmp_path)
    write(folder / "EMDB" / "test.npz", published_3dpw() | {"imgname": np.array(["c.jpg"] * PEOPLE)})
    write(folder / "coco" / "coco.npz", columns(), tmp_path)  # pictures are named from the project's folder
    write(folder / "mpii" / "mpii.npz", columns() | {"imgname": np.array(["b.jpg"] * PEOPLE)})
    assert not check_setup(tmp_path)
    printed = capsys.readouterr().out
    for words in (
        f"{folder}/3dpw/3dpw_test.npz is not there: {folder}/3DPW/3DPW_test.npz is read.",
        "ok       datasets/3dpw/3dpw_test.npz",
        "ok       datasets/coco/coco.npz",
        "wrong    datasets/mpii/mpii.npz",
        f"the first was looked for at {folder}/mpii/b.jpg and at {tmp_path}/b.jpg",
        "wrong    datasets/emdb/emdb_test.npz",
        f"EMDB/test.npz: 1 of 1 annotated pictures are missing, the first was looked for at {tmp_path}/c.jpg",
    ):
        assert words in printed
    assert "missing  datasets/3dpw" not in printed


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(tmp_path: Path, orientation: int) -> None:
    corners = np.zeros((32, 48, 3), np.uint8)
    for value, (y, x) in enumerate(((0, 0), (0, 24), (16, 0), (16, 24))):
        corners[y : y + 16, x : x + 24] = 60 * (value + 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners).save(tmp_path / "a.jpg", exif=exif, quality=100)
    turned = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [4], 7: [6], 8: [2]}[orientation]
    upright = Image.fromarray(corners)
    for how in turned:
        upright = upright.transpose(Image.Transpose(how))
    have = read_rgb(tmp_path / "a.jpg")
    assert have.shape == np.asarray(upright).shape
    assert np.abs(have.astype(int) - np.asarray(upright)).max() < 4
    np.testing.assert_array_equal(have, cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1])


def object_member(array: np.ndarray, payload: bytes) -> bytes:
    """An array of objects in .npy form, whose pickle is `payload`."""
    buffer = io.BytesIO()
    header = {"shape": array.shape, "fortran_order": False, "descr": "|O"}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + payload


def write_objects(path: Path, columns: dict[str, np.ndarray], pickled) -> None:
    """Every column as an array of objects, pickled by `pickled`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, column in columns.items():
            rows = np.empty(len(column), object)
            for i, row in enumerate(column):
                rows[i] = str(row) if isinstance(row, str) else row
            archive.writestr(f"{name}.npy", object_member(rows, pickled(rows)))


PICKLED = {
    "today": lambda rows: pickle.dumps(rows, 4),
    "protocol 2, old numpy": lambda rows: with_old_names(pickle.dumps(rows, 2)),
    "Python 2": python2_pickle,
}


@pytest.mark.parametrize("flavour", [columns, published_3dpw])
@pytest.mark.parametrize("writer", PICKLED)
def test_arrays_of_objects_are_read_as_numbers_and_text(tmp_path: Path, flavour, writer: str) -> None:
    known = flavour()
    known["gender"] = np.array(["m", "f", "neutral"])
    write_objects(tmp_path / "objects.npz", known, PICKLED[writer])
    with pytest.raises(ValueError, match="allow_pickle"), np.load(tmp_path / "objects.npz") as file:
        file["imgname"]
    np.savez(tmp_path / "plain.npz", **known)
    have, want = (SMPLAnnotations.load(tmp_path / name) for name in ("objects.npz", "plain.npz"))
    for name in ("imgname", "center", "scale", "pose", "betas", "gender", "keypoints2d"):
        np.testing.assert_array_equal(getattr(have, name), getattr(want, name), name)
        assert getattr(have, name).dtype.kind in "fU", name


class _Runs:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("field", ["imgname", "gender", "scale", "part"])
def test_other_objects_are_refused_by_field_and_nothing_is_run(tmp_path: Path, field: str) -> None:
    path, trace = tmp_path / "coco.npz", tmp_path / "trace"
    plain = columns() | {"gender": np.array(["m"] * PEOPLE)}
    cases = {
        "it asks for .*system, which": _Runs(os.system, f"touch {trace}"),
        "it asks for pathlib.*, which": pathlib.PurePosixPath("a.jpg"),
        "they are of the types dict": {},
        "they are of the types NoneType": None,
    }
    for words, value in cases.items():
        column = np.empty(PEOPLE, object)
        column[:] = [value] * PEOPLE
        np.savez(path, **plain | {field: column})
        with pytest.raises(ValueError, match=rf"coco\.npz .*the field {field} holds objects .*: {words}"):
            SMPLAnnotations.load(path)
        assert not trace.exists()
    np.load(path.with_name(write_attack(path, trace)), allow_pickle=True)["imgname"]
    assert trace.exists(), "the attack is none, so the test shows nothing"


def write_attack(path: Path, trace: Path) -> str:
    np.savez(path, imgname=np.array([_Runs(os.system, f"touch {trace}")], object))
    return path.name


def test_object_rows_of_different_length_are_refused_by_field(tmp_path: Path) -> None:
    parts = np.empty(PEOPLE, object)
    parts[:] = [np.zeros((24, 3)), np.zeros((24, 3)), np.zeros((23, 3))]
    np.savez(tmp_path / "coco.npz", **columns() | {"part": parts})
    with pytest.raises(ValueError, match=r"coco\.npz .*the field part holds objects"):
        SMPLAnnotations.load(tmp_path / "coco.npz")
