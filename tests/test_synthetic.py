"""The synthetic pictures: the same by seed, whatever the processes; resumed after a kill; annotations that agree."""

import cv2
import numpy as np
import pytest
import roma
import torch

from mega.bodies import KEYPOINTS, AnnyBody
from mega.synthetic import SceneSettings, build_dataset, dataset
from mega.synthetic.wardrobe import BodyMap, random_outfit

N_PICTURES = 7
FIELDS = {
    "box": (4,),
    "center": (2,),
    "scale": (),
    "pose": (103, 3),
    "root_orient": (3,),
    "shape": (6,),
    "trans": (3,),
    "focal": (),
    "principal_point": (2,),
    "image_size": (2,),
    "keypoints2d": (23, 3),
    "keypoints3d": (23, 3),
}
SCENE = SceneSettings(two_people=0.3)


@pytest.fixture(scope="module")
def body() -> AnnyBody:
    return AnnyBody()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK", 3)


def make(folder, **options):
    build_dataset(folder, {"test": N_PICTURES}, **{"processes": 1, "scene": SCENE, **options})
    return folder / "test"


def read(folder) -> dict[str, np.ndarray]:
    return dict(np.load(folder / "annotations.npz"))


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("images/*.jpg"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small set, made once for the tests that only look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "CHUNK", 3)
        return make(tmp_path_factory.mktemp("synthetic"))


def test_fields_and_files(made):
    table = read(made)
    n_people = len(table["imgname"])
    assert table["body"] == "anny"
    assert set(table) == {*FIELDS, "imgname", "body"}
    for field, shape in FIELDS.items():
        assert table[field].shape == (n_people, *shape), field
        assert np.isfinite(table[field]).all(), field
    assert table["pose"].dtype == table["keypoints2d"].dtype == np.float32
    assert len(content(made)) == len(set(table["imgname"])) == N_PICTURES
    for name, size in zip(table["imgname"], table["image_size"], strict=True):
        picture = cv2.imread(str(made / name))
        assert picture.shape == (size[1], size[0], 3)
        assert picture.std() > 5
    assert not (made / "chunks").exists()


def test_annotations_agree_with_the_body(made, body):
    table = {k: torch.from_numpy(v) for k, v in read(made).items() if v.dtype.kind == "f"}
    rotation = roma.rotvec_to_rotmat(table["root_orient"])
    vertices = body(table["pose"], table["shape"]) @ rotation.mT + table["trans"][:, None]  # (P, V, 3)
    assert (vertices[..., 2] > 0.3).all()
    keypoints = body.keypoints(vertices)
    torch.testing.assert_close(keypoints, table["keypoints3d"], atol=1e-4, rtol=0)

    def project(points):
        return points[..., :2] / points[..., 2:] * table["focal"][:, None, None] + table["principal_point"][:, None]

    torch.testing.assert_close(project(keypoints), table["keypoints2d"][..., :2], atol=0.02, rtol=0)
    points = project(vertices)
    box = torch.cat([points.amin(1), points.amax(1)], dim=1)
    torch.testing.assert_close(box, table["box"], atol=0.05, rtol=0)
    torch.testing.assert_close(table["center"], (box[:, :2] + box[:, 2:]) / 2, atol=0.05, rtol=0)
    torch.testing.assert_close(200 * table["scale"], (box[:, 2:] - box[:, :2]).amax(1), atol=0.1, rtol=0)


def test_seen_keypoints_lie_in_the_picture(made):
    table = read(made)
    x, y, seen = np.moveaxis(table["keypoints2d"], 2, 0)
    assert set(np.unique(seen)) == {0.0, 1.0}
    width, height = table["image_size"].T[..., None]
    assert ((x >= 0) & (x < width) & (y >= 0) & (y < height))[seen == 1].all()


def test_any_number_of_processes_makes_the_same_pictures(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    build_dataset(alone, {"test": 2}, processes=1, scene=SCENE)
    build_dataset(together, {"test": 2}, processes=2, scene=SCENE)
    assert content(alone / "test") == content(together / "test")
    for field, values in read(alone / "test").items():
        assert np.array_equal(values, read(together / "test")[field]), field


def test_a_larger_set_begins_with_the_smaller(made, tmp_path, small_chunks):
    build_dataset(tmp_path, {"test": 2}, processes=1, scene=SCENE)
    first = content(tmp_path / "test")
    assert first == {name: content(made)[name] for name in first}


def test_other_seeds_and_splits_make_other_pictures(made, tmp_path, small_chunks):
    build_dataset(tmp_path / "seed", {"test": 1}, seed=1, processes=1, scene=SCENE)
    build_dataset(tmp_path / "split", {"val": 1}, processes=1, scene=SCENE)
    first = content(made)["000000.jpg"]
    assert content(tmp_path / "seed" / "test")["000000.jpg"] != first
    assert content(tmp_path / "split" / "val")["000000.jpg"] != first


def test_goes_on_after_a_kill(made, tmp_path, small_chunks, monkeypatch):
    calls = []
    whole = dataset._Worker.make_chunk

    def killed_in_the_second_chunk(worker, folder, split, number, *rest):
        calls.append(number)
        if number == 1:
            dataset._write_jpeg(folder / "images/000003.jpg", np.zeros((8, 8, 3), np.uint8), 50)
            raise KeyboardInterrupt
        return whole(worker, folder, split, number, *rest)

    monkeypatch.setattr(dataset._Worker, "make_chunk", killed_in_the_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert not (tmp_path / "test/annotations.npz").exists()

    def noted(worker, folder, split, number, *rest):
        calls.append(number)
        return whole(worker, folder, split, number, *rest)

    monkeypatch.setattr(dataset._Worker, "make_chunk", noted)
    folder = make(tmp_path)
    assert calls == [0, 1, 1, 2]  # the first chunk was not made again
    assert content(folder) == content(made)
    for field, values in read(made).items():
        assert np.array_equal(values, read(folder)[field]), field
    make(tmp_path)
    assert len(calls) == 4  # nothing left to do


def test_another_recipe_is_refused(made, tmp_path, small_chunks):
    folder = make(tmp_path)
    with pytest.raises(FileExistsError, match=r"recipe\.json.*overwrite"):
        build_dataset(tmp_path, {"test": N_PICTURES}, seed=5, processes=1, scene=SCENE)
    assert content(folder) == content(made)


def test_clothes_follow_the_body(body):
    body_map = BodyMap(body)
    x, _, _, arm, head, foot, eye = body_map.fields.T
    at = dict(zip(KEYPOINTS, body.keypoints(body.template).numpy(), strict=True))

    def nearest(name):
        return np.linalg.norm(body_map.fields[:, :3] - at[name], axis=1).argmin()

    assert abs(arm[nearest("left_wrist")] - 2) < 0.25
    assert abs(arm[nearest("right_elbow")] - 1) < 0.25
    assert arm[nearest("left_knee")] < 0
    assert head[nearest("nose")] > 0.9
    assert foot[nearest("left_big_toe")] > 0.9
    assert eye.min() < 0.01
    for seed in range(5):
        outfit = random_outfit(np.random.default_rng(seed), body_map.landmarks)
        colors = outfit.paint(body_map.fields)
        assert colors.shape == (len(x), 3)
        assert colors.min() >= 0
        assert colors.max() <= 1
        thickness = outfit.thickness(body_map.fields)
        assert thickness.min() >= 0
        assert thickness.max() < 0.04
