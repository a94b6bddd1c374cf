"""One camera for all: the ViT's head predicts on a crop in [-0.5, 0.5], and everything else sees it on [-1, 1].

Also where the crops come from: the kind of crop belongs to the model, whatever data it is tested on.
"""

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mega.bodies import SMPLHBody
from mega.checkpoints import PUBLISHED_SETUPS, load_cvqmae, save_model
from mega.config import build, compose
from mega.console import Stopwatch
from mega.data import Augmentation, SMPLImages
from mega.data.smpl_annotations import read_smpl_picture
from mega.evaluation.evaluate import Evaluator, Options
from mega.evaluation.test_sets import TestSet
from mega.metrics import COCO17
from mega.model import CVQMAE
from mega.predictor import Crop, Predictor
from mega.smpl_crops import annotated_crop, patch_crop
from mega.test_time_augmentation import TTA_CHOICES, predict_mesh
from mega.training.cvqmae import _keypoint_terms
from tests.helpers.fake_files import SMALL, SMALL_VIT, composed, needs_template, write_data_sets, write_project
from tests.helpers.toy import toy_model, toy_tokenizer

SIZE = 256
CENTER, SCALE = np.array([170.3, 118.8]), 0.9  # a box of 180 px
PUBLISHED_CAM = (0.31, 0.22, -0.13)  # on [-0.5, 0.5]


def vit_like(cam: tuple[float, ...] | None = None) -> CVQMAE:
    """A small model whose camera head predicts in the published ViT's unit, always `cam` if one is given."""
    tokenizer = toy_tokenizer()
    model, description = toy_model(tokenizer.n_tokens)
    model = CVQMAE(model.backbone, **description["model"], cam_range=1.0)
    if cam is not None:
        with torch.no_grad():
            model.decoder.cam_predictor.weight.zero_()
            model.decoder.cam_predictor.bias.copy_(torch.tensor(cam))
    return model.eval()


def published_projection(points: Tensor) -> Tensor:
    """What the published code compares with p/256 - 0.5."""
    s, tx, ty = PUBLISHED_CAM
    return s * (points[..., :2] + torch.tensor([tx, ty]))


# One place converts


@pytest.mark.parametrize("average", TTA_CHOICES)
def test_the_unit_of_the_head_is_seen_by_nobody(average: str) -> None:
    """A head in the other unit, its scale halved, gives the same cameras, whatever is averaged."""
    tokenizer = toy_tokenizer()
    usual, _ = toy_model(tokenizer.n_tokens)
    halved = copy.deepcopy(usual)
    halved.decoder.cam_range = 1.0
    with torch.no_grad():
        halved.decoder.cam_predictor.weight[0] /= 2
        halved.decoder.cam_predictor.bias[0] /= 2
    crops = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours, other = (predict_mesh(model, tokenizer, crops, "soft", average) for model in (usual, halved))
    torch.testing.assert_close(other.cam, ours.cam, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(other.mesh, ours.mesh)

    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    crop, box = Crop(size=64, margin=1.0), np.array([[60.0, 40, 260, 200]])
    tight = [Predictor(tokenizer, m, crop, tta=average).tighten(image, box) for m in (usual, halved)]
    np.testing.assert_allclose(*tight, rtol=1e-4)
    assert np.abs(tight[0] - box).max() > 1, "the box should have moved"


def test_an_untrained_body_fills_the_crop_in_any_unit() -> None:
    tokenizer = toy_tokenizer()
    model, description = toy_model(tokenizer.n_tokens)
    features = torch.zeros(1, model.backbone.out_channels, 2, 2)
    for cam_range in (1.0, 2.0):
        fresh = CVQMAE(model.backbone, **description["model"], cam_range=cam_range).eval()
        torch.testing.assert_close(fresh.rotcam(features)[1], torch.tensor([[0.9, 0.0, 0.0]]), atol=0.05, rtol=0)


# Training, evaluation and demo


def test_every_route_puts_the_body_in_the_same_place(tmp_path: Path) -> None:
    """Annotate the keypoints where the published projection has them on the ViT's crop: all errors are zero then, and
    the demo draws the body over them."""
    tokenizer = toy_tokenizer()
    model = vit_like(PUBLISHED_CAM)
    predictor = Predictor(tokenizer, model, Crop(SIZE, 1.0, patch=True))
    image = np.random.default_rng(0).integers(0, 256, (260, 340, 3), dtype=np.uint8)
    crop = patch_crop(image, CENTER, SCALE, SIZE)
    crops = torch.from_numpy(crop).permute(2, 0, 1)[None]
    predicted = predictor.predict(crops)

    # 24 vertices of the predicted mesh serve as joints; p/256 - 0.5 = projection, and the crop is the box itself.
    rows = torch.arange(0, 162, 7)[:24]
    regressor = torch.zeros(41, tokenizer.n_vertices)
    regressor[17 + torch.arange(24), rows] = 1
    on_patch = published_projection(predicted.mesh[0, rows])  # (24, 2)
    assert on_patch.abs().max() < 0.5, "the body should be on the crop"
    pixels = CENTER + 200 * SCALE * on_patch.numpy()
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    write_annotation(tmp_path, pixels)
    items = SMPLImages(tmp_path / "3dpw_test.npz", SIZE, patch=True)
    batch = default_collate([items[0]])
    np.testing.assert_array_equal(batch["image"][0].permute(1, 2, 0).numpy(), crop)

    # The training target and the published one
    torch.testing.assert_close(batch["keypoints2d"][0, 17:, :2] / 2, on_patch, atol=1e-5, rtol=0)
    canonical_joints = regressor @ predicted.canonical
    truth = batch | {"keypoints3d": canonical_joints, "rotmat": predicted.rotation}
    features = model.features(crops)
    term = _keypoint_terms(canonical_joints, predicted.rotation, model.rotcam(features)[1], truth)["keypoints2d"]
    assert term < 1e-4

    # The metric
    parts = {"protocols": {}, "regressors": {}, "regressor2d": regressor, "first_visible": {}, "margin": 1.0}
    people = TestSet("one", tmp_path, items, None, **parts)
    evaluator = Evaluator(predictor, people, {"coco17": COCO17}, Options(), Stopwatch())
    assert evaluator.keypoint_error(predicted, batch).item() < 1e-2  # percent of the box

    # The demo, seen from so far away that perspective is weak
    half = 100 * SCALE
    boxes = np.array([[*(CENTER - half), *(CENTER + half)]])
    torch.testing.assert_close(predictor.predict(predictor.crops(image, boxes)).cam, predicted.cam, atol=1e-5, rtol=0)
    drawn = predictor(image, boxes, focal=1e6)
    vertices = drawn.vertices[0, rows].astype(np.float64)
    projected = drawn.focal * vertices[:, :2] / vertices[:, 2:] + drawn.principal_point
    np.testing.assert_allclose(projected, pixels, atol=0.2)


def write_annotation(folder: Path, pixels: np.ndarray) -> None:
    """`folder/3dpw_test.npz`: one person of 3DPW, whose scale is stored inverted, with joints (24, 2) px."""
    np.savez(
        folder / "3dpw_test.npz",
        imgname=np.array(["a.png"]),
        center=CENTER[None],
        scale=np.array([1 / SCALE]),
        root_orient=np.zeros((1, 3)),
        pose_body=np.zeros((1, 63)),
        betas=np.zeros((1, 10)),
        gender=np.array(["m"]),
        j2d=np.concatenate([pixels, np.ones((24, 1))], axis=1)[None],
    )


def test_the_training_loss_is_the_published_one() -> None:
    """Mean over joints and coordinates of |projection - (p/256 - 0.5)|, with the weight that the config gives."""
    weight = composed("train_mega", "experiment=mega_vit").training.weights.keypoints2d
    generator = torch.Generator().manual_seed(0)
    joints, targets = torch.randn(1, 41, 3, generator=generator), torch.rand(1, 41, 2, generator=generator) - 0.5
    truth = {
        "keypoints2d": torch.cat([2 * targets, torch.ones(1, 41, 1)], -1),
        "keypoints3d": joints,
        "rotmat": torch.eye(3)[None],
    }
    model = vit_like(PUBLISHED_CAM)
    _, cam = model.rotcam(torch.rand(1, model.backbone.out_channels, 2, 2, generator=generator))
    ours = weight * _keypoint_terms(joints, torch.eye(3)[None], cam, truth)["keypoints2d"]
    torch.testing.assert_close(ours, (published_projection(joints) - targets).abs().mean())


# The crop


@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize("mirrored", [False, True])
def test_content_and_keypoints_of_a_patch_stay_together(tmp_path: Path, mirrored: bool, degrees: int) -> None:
    """A blob in the picture is on the crop where the keypoint is said to be, to a tenth of a pixel."""
    x, y = 205.0, 96.0
    rows, columns = np.mgrid[:260, :340]
    blob = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4**2))
    cv2.imwrite(str(tmp_path / "a.png"), np.repeat(blob[..., None], 3, -1).round().astype(np.uint8))
    write_annotation(tmp_path, np.tile([x, y], (24, 1)))
    turned = Augmentation(scale=0.2, degrees=degrees, turn_probability=1.0)
    items = SMPLImages(tmp_path / "3dpw_test.npz", SIZE, True, turned, flip_probability=float(mirrored))
    seen = items[0]["image"][0].double()
    weights = seen / seen.sum()
    places = torch.arange(SIZE, dtype=torch.float64)
    found = torch.stack([(weights.sum(0) * places).sum(), (weights.sum(1) * places).sum()])
    said = (items[0]["keypoints2d"][17, :2].double() + 1) * SIZE / 2
    torch.testing.assert_close(found, said, atol=0.1, rtol=0)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = write_project(tmp_path_factory.mktemp("project"), {"mega_resnet": SMALL})
    write_data_sets(folder)
    return folder


@needs_template
@pytest.mark.parametrize("data", [("testset=3dpw",), ("testset=file", "testset.path=datasets/coco/coco.npz")])
@pytest.mark.parametrize(("experiment", "cut"), [("mega_vit", patch_crop), ("mega_hrnet", annotated_crop)])
def test_the_model_says_how_its_crops_are_cut(project: Path, monkeypatch, experiment, cut, data) -> None:
    monkeypatch.chdir(project)
    config = compose("test_mega", [f"experiment={experiment}", *data])
    del config.testset.batch_size, config.testset.workers
    people = build(config.testset, body=SMPLHBody("body_models"), crop=PUBLISHED_SETUPS[experiment].crop)
    known = people.items.annotations
    picture = read_smpl_picture(people.items.root, known.imgname[2])
    expected = cut(picture, known.center[2], known.scale[2], PUBLISHED_SETUPS[experiment].crop.size)
    np.testing.assert_allclose(people.items[2]["image"].permute(1, 2, 0), expected, atol=1e-4)


# The files


def test_a_file_says_the_unit_and_the_kind_of_crop(tmp_path: Path) -> None:
    config = composed("train_mega", "experiment=mega_vit", *SMALL, *SMALL_VIT)
    assert (config.model.cam_range, config.crop.patch) == (1.0, True)
    for other in ((), ("experiment=mega_hrnet",), ("experiment=mega_resnet",)):
        usual = composed("train_mega", *other)
        assert (usual.model.cam_range, usual.crop.patch) == (2.0, False)
    model, description = toy_model(6)
    description["model"]["cam_range"] = 1.0
    save_model(model, tmp_path / "cvqmae.safetensors", description)
    assert load_cvqmae(tmp_path / "cvqmae.safetensors")[0].decoder.cam_range == 1.0


def test_vit_files_of_earlier_versions_are_refused(tmp_path: Path) -> None:
    model, description = toy_model(6)
    save_model(
        model, tmp_path / "cvqmae.safetensors", description | {"backbone": "vit_h", "backbone_args": {"depth": 1}}
    )
    with pytest.raises(ValueError, match=r"an earlier version wrote it.*convert_weights\.py or train_mega.py"):
        load_cvqmae(tmp_path / "cvqmae.safetensors")
