"""The synthetic pictures: the same by seed, whatever the processes; resumed after a kill; annotations that agree."""

import cv2
import numpy as np
import pytest
import roma
import torch
from scipy.spatial import cKDTree

from mega.bodies import KEYPOINTS, AnnyBody
from mega.synthetic import SceneSettings, build_split, dataset
from mega.synthetic.scene import coarsen
from mega.synthetic.surroundings import lit_share
from mega.synthetic.wardrobe import BodyMap, Outfit

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
    build_split(folder / "test", N_PICTURES, **{"processes": 1, "scene": SCENE, **options})
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
    build_split(alone / "test", 2, processes=1, scene=SCENE)
    build_split(together / "test", 2, processes=2, scene=SCENE)
    assert content(alone / "test") == content(together / "test")
    for field, values in read(alone / "test").items():
        assert np.array_equal(values, read(together / "test")[field]), field


def test_pictures_depend_on_seed_and_split_but_not_on_their_number(made, tmp_path, small_chunks):
    first = content(made)["000000.jpg"]
    for seed, split, same in ((0, "test", True), (1, "test", False), (0, "val", False)):
        folder = tmp_path / f"{seed}"
        build_split(folder / split, 1, seed=seed, processes=1, scene=SCENE)
        assert (content(folder / split)["000000.jpg"] == first) is same


def test_goes_on_after_a_kill(made, tmp_path, small_chunks, monkeypatch):
    calls = []
    whole = dataset._make_chunk

    def killed_in_the_second_chunk(file, images, **options):
        calls.append(images.start // 3)
        if images.start == 3:
            (file.parents[1] / "images/000003.jpg").write_bytes(b"not an image")
            raise KeyboardInterrupt
        return whole(file, images, **options)

    monkeypatch.setattr(dataset, "_make_chunk", killed_in_the_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert not (tmp_path / "test/annotations.npz").exists()

    def noted(file, images, **options):
        calls.append(images.start // 3)
        return whole(file, images, **options)

    monkeypatch.setattr(dataset, "_make_chunk", noted)
    folder = make(tmp_path)
    assert calls == [0, 1, 1, 2]  # the first chunk was not made again
    assert content(folder) == content(made)
    for field, values in read(made).items():
        assert np.array_equal(values, read(folder)[field]), field
    make(tmp_path)
    assert len(calls) == 4  # nothing left to do


def test_another_recipe_is_refused(made):
    before = content(made)
    with pytest.raises(FileExistsError, match=r"recipe\.json.*overwrite"):
        make(made.parent, seed=5)
    assert content(made) == before


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
        outfit = Outfit(np.random.default_rng(seed), body_map)
        colors = outfit.paint(body_map.fields)
        assert colors.shape == (len(x), 3)
        assert colors.min() >= 0
        assert colors.max() <= 1
        thickness = outfit.thickness(body_map.fields)
        assert thickness.min() >= 0
        assert thickness.max() < 0.04


def test_coarse_mesh_stays_on_the_body(body):
    rest, faces = body.template.numpy(), body.faces.numpy()
    part = body.skinning_weights.argmax(dim=1).numpy()
    kept, coarse = coarsen(rest, faces, part, 0.012)
    assert len(set(kept)) == len(kept) < len(rest) / 2
    assert coarse.max() < len(kept)
    assert cKDTree(rest[kept]).query(rest)[0].max() < 0.025
    same, all_faces = coarsen(rest, faces, np.arange(len(rest)), 0.012)  # every vertex a part of its own: no change
    assert len(same) == len(rest)
    assert len(all_faces) == len(faces)


def test_what_is_above_throws_a_shadow():
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 81), [0.0], np.linspace(-1, 1, 81)), axis=-1).reshape(-1, 3)
    plate = grid * (0.3, 0, 0.3) - (0, 0.5, 0)  # y points down: half a metre above the floor
    lit = lit_share(np.concatenate([grid, plate]).astype(np.float32), np.array([0.0, -1.0, 0.0]))
    floor, under = lit[: len(grid)], (np.abs(grid[:, [0, 2]]) < 0.25).all(axis=1)
    assert (floor[under] == 0).all()
    assert (floor[(np.abs(grid[:, [0, 2]]) > 0.4).any(axis=1)] == 1).all()
    assert (lit[len(grid) :] == 1).all()
