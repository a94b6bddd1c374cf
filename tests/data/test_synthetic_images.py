"""Annotated pictures: reading them, and that a crop and what is known about it stay together."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import roma
import torch
from hydra.utils import instantiate
from torchvision.transforms import v2

from mega.bodies import MIRRORED_KEYPOINTS
from mega.data import Augmentation, SyntheticAnnotations, SyntheticImages
from mega.geometry import box_center_and_side
from tests.helpers.fake_files import composed

PEOPLE = 6
LOOK = (v2.ColorJitter(0.5, 0.5, 0.5, 0.1), v2.RandomErasing(0.5))
WILD = Augmentation(scale=0.2, shift=0.15, degrees=30, turn_probability=1, look=LOOK)


def _table(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """People whose keypoints are random points in front of a camera, and pictures that show dots there."""
    focal, size = 300.0, np.array([240, 200])
    root_orient = rng.normal(size=(PEOPLE, 3))
    trans = np.column_stack([rng.uniform(-0.3, 0.3, (PEOPLE, 2)), rng.uniform(3, 4, PEOPLE)])
    canonical = 0.4 * rng.normal(size=(PEOPLE, 23, 3)).clip(-1.5, 1.5)
    rotation = roma.rotvec_to_rotmat(torch.from_numpy(root_orient)).numpy()
    keypoints3d = canonical @ rotation.transpose(0, 2, 1) + trans[:, None]
    xy = focal * keypoints3d[..., :2] / keypoints3d[..., 2:] + size / 2
    return {
        "body": np.array("anny"),
        "imgname": np.array([f"images/{i}.jpg" for i in range(PEOPLE)]),
        "box": np.concatenate([xy.min(1), xy.max(1)], axis=1),
        "image_size": np.tile(size, (PEOPLE, 1)),
        "pose": rng.normal(size=(PEOPLE, 5, 3)).astype(np.float16),
        "shape": rng.random((PEOPLE, 4)),
        "root_orient": root_orient,
        "trans": trans,
        "focal": np.full(PEOPLE, focal),
        "principal_point": np.tile(size / 2, (PEOPLE, 1)),
        "keypoints2d": np.concatenate([xy, np.ones((PEOPLE, 23, 1))], axis=2),
        "keypoints3d": keypoints3d,
        "canonical": canonical,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    table = _table(np.random.default_rng(0))
    (folder / "train" / "images").mkdir(parents=True)
    for i in range(PEOPLE):
        width, height = table["image_size"][i]
        image = np.zeros((height, width, 3), np.uint8)
        for x, y, _ in table["keypoints2d"][i]:
            cv2.circle(image, (round(x * 16), round(y * 16)), 32, (0, 255, 0), -1, cv2.LINE_AA, 4)
        cv2.imwrite(str(folder / "train" / table["imgname"][i]), image)
    np.savez(folder / "train" / "annotations.npz", **table)
    return folder


@pytest.mark.parametrize("augmentation", [None, Augmentation(scale=0.2, shift=0.2, degrees=40, turn_probability=1)])
def test_keypoints_stay_on_the_picture(folder: Path, augmentation: Augmentation | None) -> None:
    """There is a dot in the crop wherever a keypoint is said to be, whatever was done to the crop."""
    dataset = SyntheticImages(folder, "train", crop_size=224, augmentation=augmentation, mirrored=True)
    found = 0
    for item in dataset:
        x, y = ((item["keypoints2d"][:, :2] + 1) * 112).round().long().unbind(1)
        inside = (x >= 2) & (x < 222) & (y >= 2) & (y < 222)
        on_picture = torch.from_numpy(dataset.annotations.keypoints2d[item["index"] % PEOPLE])[:, :2]
        if item["index"] >= PEOPLE:
            on_picture = on_picture[MIRRORED_KEYPOINTS]
        on_picture = inside & (on_picture > 2).all(1) & (on_picture < torch.tensor([237.0, 197])).all(1)
        found += int(on_picture.sum())
        assert (item["image"][1, y[on_picture], x[on_picture]] > 100).all()
    assert found > 20


def test_rotation_turns_with_the_crop(folder: Path) -> None:
    """The rotated canonical keypoints, seen from far away, lie as the keypoints of the turned crop do."""
    turned = SyntheticImages(folder, "train", augmentation=Augmentation(degrees=60, turn_probability=1))
    straight = SyntheticImages(folder, "train")
    for one, other in zip(turned, straight, strict=True):
        turn = one["rotmat"] @ other["rotmat"].T
        torch.testing.assert_close(turn[2], torch.tensor([0.0, 0, 1]))
        assert torch.equal(one["keypoints3d"], other["keypoints3d"])
        flat = other["keypoints2d"][:, :2] @ turn[:2, :2].T
        torch.testing.assert_close(one["keypoints2d"][:, :2], flat, atol=1e-4, rtol=0)
    assert len({round(float(item["rotmat"][0, 0]), 4) for item in turned}) == PEOPLE


def test_mirrored_items_are_whole(folder: Path) -> None:
    """In the mirror, rotation and canonical keypoints still give what the crop shows, and a rotation is a rotation."""
    dataset = SyntheticImages(folder, "train", mirrored=True)
    dataset.set_tokens(np.arange(2 * PEOPLE)[:, None])
    assert len(dataset) == 2 * PEOPLE
    for row in range(PEOPLE):
        there, mirrored = dataset[row], dataset[row + PEOPLE]
        assert mirrored["tokens"].tolist() == [row + PEOPLE]
        torch.testing.assert_close(torch.det(mirrored["rotmat"]), torch.tensor(1.0))
        assert torch.equal(mirrored["image"], there["image"].flip(2))
        in_camera, in_mirror = (item["keypoints3d"] @ item["rotmat"].T for item in (there, mirrored))
        torch.testing.assert_close(in_mirror[MIRRORED_KEYPOINTS], in_camera * torch.tensor([-1.0, 1, 1]))


def test_canonical_keypoints(folder: Path) -> None:
    table = np.load(folder / "train" / "annotations.npz")
    for item in SyntheticImages(folder, "train"):
        expected = torch.from_numpy(table["canonical"][item["index"]]).float()
        torch.testing.assert_close(item["keypoints3d"], expected, atol=1e-5, rtol=0)


def test_square_leads_back_to_pixels(folder: Path) -> None:
    dataset = SyntheticImages(folder, "train", augmentation=Augmentation(scale=0.3, shift=0.3))
    for item in dataset:
        center, side = box_center_and_side(item["square"])
        pixels = center + item["keypoints2d"][:, :2] * side / 2
        expected = torch.from_numpy(dataset.annotations.keypoints2d[item["index"]])[:, :2]
        torch.testing.assert_close(pixels, expected, atol=1e-3, rtol=0)


def test_item_depends_on_seed_epoch_and_index_only(folder: Path) -> None:
    dataset = SyntheticImages(folder, "train", augmentation=WILD)
    dataset.set_tokens(np.arange(PEOPLE * 7).reshape(PEOPLE, 7))
    first = dataset[2]
    _ = [dataset[i] for i in (0, 5)]
    again = SyntheticImages(folder, "train", augmentation=WILD)[2]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["rotmat"], again["rotmat"])
    assert first["tokens"].tolist() == list(range(14, 21))
    assert not torch.equal(first["image"], dataset.at_epoch(1)[2]["image"])
    assert not torch.equal(first["image"], SyntheticImages(folder, "train", augmentation=WILD, seed=1)[2]["image"])
    assert dataset.epoch == 0


@pytest.mark.parametrize(
    "experiment",
    [(), ("experiment=mega_hrnet", "+recipe=improved"), ("experiment=mega_vit_mixture", "+recipe=improved")],
)
def test_configured_looks(experiment: tuple[str, ...]) -> None:
    """They keep a crop's size and kind, are all drawn, and say the same for the same numbers, wherever they run."""
    config = composed("train_mega", *experiment)
    augmentation, size = instantiate(config.data.augmentation), config.crop.size
    ramp = np.linspace(0, 255, size * size * 3).reshape(3, size, size).astype(np.uint8)
    crop = torch.from_numpy(ramp + np.random.default_rng(0).integers(0, 40, ramp.shape, dtype=np.uint8))
    before, state = crop.clone(), torch.get_rng_state()
    elsewhere = pickle.loads(pickle.dumps(augmentation))
    drawn = []
    for i in range(60):
        look = augmentation.draw_look(crop, np.random.default_rng(i))
        assert (look.shape, look.dtype) == (crop.shape, torch.uint8)
        torch.manual_seed(i)
        assert torch.equal(look, elsewhere.draw_look(crop, np.random.default_rng(i)))
        drawn.append(look)
    assert torch.equal(crop, before)
    brightness = torch.stack(drawn).float().mean((1, 2, 3))
    assert len(brightness.unique()) == len(drawn)
    assert 5 < brightness.std() < 40
    torch.set_rng_state(state)
    augmentation.draw_look(crop, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_change_nothing(folder: Path) -> None:
    dataset = SyntheticImages(folder, "train", augmentation=WILD)
    alone, shared = (
        next(iter(torch.utils.data.DataLoader(dataset, batch_size=PEOPLE, num_workers=workers))) for workers in (0, 2)
    )
    for key, value in alone.items():
        assert torch.equal(value, shared[key]), key
    assert alone["image"].shape == (PEOPLE, 3, 160, 160)
    assert alone["image"].dtype == torch.uint8


def test_reading_twice_gives_the_same(folder: Path) -> None:
    """Nothing is normalised in place."""
    dataset = SyntheticImages(folder, "train")
    for key, value in dataset[1].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(dataset[1][key])), key


def test_limit(folder: Path) -> None:
    dataset = SyntheticImages(folder, "train", limit=2)
    dataset.set_tokens(np.zeros((2, 3), np.int64))
    assert len(dataset) == len(list(dataset)) == 2


def test_names_from_windows_and_bytes_are_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "images").symlink_to(folder / "train" / "images")
    with np.load(folder / "train" / "annotations.npz") as file:
        table = dict(file)
    names = np.array([name.replace("/", "\\").encode() for name in table["imgname"].tolist()])
    np.savez(tmp_path / "train" / "annotations.npz", **table | {"imgname": names, "body": np.array(b"anny")})
    ours, theirs = SyntheticImages(tmp_path, "train"), SyntheticImages(folder, "train")
    assert ours.annotations.body == "anny"
    assert torch.equal(ours[1]["image"], theirs[1]["image"])


def test_wrong_tokens_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="tokens for 3"):
        SyntheticImages(folder, "train").set_tokens(np.zeros((3, 7), np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.pop("focal"), r"lacks the fields \['focal'\]"),
        (lambda table: table.update(box=table["box"][:, :3]), r"box has shape \(6, 3\), expected \(6, 4\)"),
        (lambda table: table.update(trans=table["trans"] * np.nan), r"trans is not finite in row 0"),
        (lambda table: table.update(pose=np.array([{}] * PEOPLE)), "cannot be read"),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, change, message: str) -> None:
    table = _table(np.random.default_rng(0))
    change(table)
    path = tmp_path / "annotations.npz"
    np.savez(path, **table)
    with pytest.raises(ValueError, match=message) as error:
        SyntheticAnnotations.load(path)
    assert str(path) in str(error.value)


def test_files_that_are_no_annotations(tmp_path: Path) -> None:
    path = tmp_path / "annotations.npz"
    with pytest.raises(FileNotFoundError, match="make_synthetic"):
        SyntheticAnnotations.load(path)
    path.write_bytes(b"PK\x03\x04 not really a zip")
    with pytest.raises(ValueError, match="cannot be read"):
        SyntheticAnnotations.load(path)


def test_bad_pictures_are_named(folder: Path, tmp_path: Path) -> None:
    from mega.data.synthetic_images import read_rgb

    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_rgb(tmp_path / "gone.jpg")
    for content in (b"", b"no picture"):
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.jpg"):
            read_rgb(tmp_path / "bad.jpg")
