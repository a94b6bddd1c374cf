"""What an evaluation predicts: views of the crop and the way back from them, draws, and what is loaded for it."""

import os
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
import trimesh
from omegaconf import OmegaConf
from torch import Tensor

from mega import test_time_augmentation as averaging
from mega.bodies import AnnyBody, SMPLHBody
from mega.evaluation.evaluate import Subject, draw, predict, sampled_canonical
from mega.geometry import project_weak_perspective
from mega.predictor import Predictor
from mega.test_time_augmentation import TTA_CHOICES
from mesh_vq_vae import mirrored_vertices
from tests.helpers.fake_files import SMALL, TEMPLATE, composed, needs_template, write_project
from tests.helpers.toy import toy_tokenizer

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoint" / "anny_lite"
OPTIONS = {"device": "cpu", "precision": "fp32", "compile": False, "decode": None, "average": None}


@pytest.fixture(scope="module")
def subject(toy_weights) -> Subject:
    return _of_folder(toy_weights)


@pytest.fixture(scope="module")
def images(subject) -> Tensor:
    size = subject.crop["size"]
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _of_folder(folder: Path, **changes) -> Subject:
    return Subject.load(OmegaConf.create({"weights": str(folder), **OPTIONS, **changes}), body=None)


# Left and right


@pytest.mark.parametrize("mesh", ["toy", "anny", pytest.param("smpl", marks=needs_template)])
def test_the_sides_of_a_mesh_match_face_by_face(mesh) -> None:
    """Also on SMPL's mesh in a pose, where the nearest vertex on the other side is another for half of them."""
    if mesh == "smpl":
        loaded = trimesh.load(TEMPLATE, process=False)
        template, faces = np.asarray(loaded.vertices), np.asarray(loaded.faces)
    else:
        tokenizer = toy_tokenizer() if mesh == "toy" else _of_folder(SHIPPED).tokenizer
        template, faces = tokenizer.template.numpy(), tokenizer.faces.numpy()
    mirrored = mirrored_vertices(template, faces)
    np.testing.assert_array_equal(mirrored[mirrored], np.arange(len(template)))
    assert 0 < (mirrored == np.arange(len(template))).sum() < 0.2 * len(template), "the line between the sides"
    turned_round = {tuple(np.roll(face, -face.argmin())) for face in mirrored[faces][:, ::-1]}
    assert turned_round == {tuple(np.roll(face, -face.argmin())) for face in faces}
    if mesh != "smpl":
        assert np.abs(template[mirrored] * [-1, 1, 1] - template).max() < 1e-3


def test_a_body_and_its_mirror_image_are_of_mirrored_poses() -> None:
    """A left arm raised is a right arm raised in the mirror: what the body model says, the vertices say."""
    body = AnnyBody()
    generator = torch.Generator().manual_seed(0)
    pose = 0.2 * torch.randn(2, body.n_pose_joints, 3, generator=generator)
    shape = body.sample_shapes(2, generator)
    mirrored = torch.from_numpy(mirrored_vertices(body.template.numpy(), body.faces.numpy()))
    seen = body(pose, shape)[:, mirrored] * torch.tensor([-1.0, 1.0, 1.0])
    distance = (seen - body(body.mirror_pose(pose), shape)).norm(dim=-1)
    assert distance.max() < 2e-3
    assert (body(pose, shape) - body(body.mirror_pose(pose), shape)).norm(dim=-1).mean() > 0.05


def test_a_mesh_without_two_sides_is_refused() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=1)
    faces = np.asarray(mesh.faces)
    a, b, c = faces[0]
    lopsided = np.concatenate([faces[1:], [[a, b, len(mesh.vertices)], [b, c, len(mesh.vertices)]]])
    template = np.concatenate([mesh.vertices, mesh.triangles_center[:1]]) * [0.3, 0.9, 0.2]
    with pytest.raises(ValueError, match="no left and right"):
        mirrored_vertices(template, lopsided)


# Views


def test_plain_prediction_is_the_demo_s(subject, images, toy_weights) -> None:
    predictor = Predictor.load(toy_weights)
    image = images[0].permute(1, 2, 0).numpy()
    half = subject.crop["size"] / subject.crop["margin"] / 2
    middle = subject.crop["size"] / 2
    estimate = predictor.estimate(image, np.array([[middle - half, middle - half, middle + half, middle + half]]))
    found = predict(subject, images[:1], subject.decode)
    torch.testing.assert_close(found.tokens, estimate.tokens)
    torch.testing.assert_close(found.canonical, estimate.canonical, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.rotation, estimate.rotation, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.cam, estimate.cam, atol=1e-5, rtol=0)


@pytest.mark.parametrize("average", ["flip", "flip_shift"])
@pytest.mark.parametrize("decode", ["argmax", "soft"])
def test_who_is_seen_in_a_mirror_is_predicted_in_a_mirror(subject, images, average, decode) -> None:
    """With the mirror among the views, an untrained model too knows no left and right, in body, rotation and place."""
    across = torch.tensor([-1.0, 1.0, 1.0])
    straight, seen = (predict(subject, x, decode, average) for x in (images, images.flip(-1)))
    mirrored = subject.tokenizer.mirrored
    back = seen.canonical[:, mirrored] * across
    torch.testing.assert_close(back, straight.canonical, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.mesh[:, mirrored] * across, straight.mesh, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.cam * torch.tensor([1.0, -1.0, 1.0]), straight.cam, atol=1e-5, rtol=0)
    without = predict(subject, images.flip(-1), decode)
    assert (without.cam * torch.tensor([1.0, -1.0, 1.0]) - predict(subject, images, decode).cam).abs().max() > 1e-3


@pytest.mark.parametrize("average", TTA_CHOICES)
def test_averages_are_rotations_and_the_same_again(subject, images, average) -> None:
    found = predict(subject, images, "soft", average)
    assert roma.is_rotation_matrix(found.rotation, epsilon=1e-5)
    again = predict(subject, images.float(), "soft", average)
    for name in ("canonical", "rotation", "cam", "tokens"):
        torch.testing.assert_close(getattr(again, name), getattr(found, name), atol=0, rtol=0)
    torch.testing.assert_close(found.mesh, found.canonical @ found.rotation.mT)


def test_views_are_averaged(subject, images) -> None:
    crops = subject.normalise(images)
    parts = (subject.model, subject.tokenizer, crops, "soft")
    views = [averaging._predict_view(*parts, view) for view in averaging._views("shift", 64)]
    assert len(views) == 5
    found = predict(subject, images, "soft", "shift")
    torch.testing.assert_close(found.canonical, torch.stack([v.canonical for v in views]).mean(0))
    torch.testing.assert_close(found.cam, torch.stack([v.cam for v in views]).mean(0))
    torch.testing.assert_close(
        found.rotation, roma.special_procrustes(torch.stack([v.rotation for v in views]).mean(0))
    )


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("right", "down"), [(3, 0), (-3, 0), (0, 3), (0, -3)])
def test_points_come_back_from_a_view_to_where_they_are(subject, images, monkeypatch, right, down, mirrored) -> None:
    """Where a model sees the brightest pixel in a view, it is in the crop, once carried back."""
    size = images.shape[-1]
    dark = torch.zeros(1, 3, size, size)
    row, column = 20, 41
    dark[..., row, column] = 1

    def point_at_the_light(model, features):
        """A body whose middle is where the light is: s = 0.8, tx and ty of the light."""
        where = seen["crop"].sum(1).flatten().argmax()
        x, y = ((torch.tensor([where % size, where // size]) + 0.5) * 2 / size - 1).tolist()
        prediction = real(model, features)
        prediction.cam = torch.tensor([[0.8, x / 0.8, y / 0.8]])
        return prediction

    seen, real, look = {}, averaging.predict_deterministic, averaging._look
    monkeypatch.setattr(averaging, "predict_deterministic", point_at_the_light)
    monkeypatch.setattr(averaging, "_look", lambda crops, view: seen.setdefault("crop", look(crops, view)))
    view = averaging._View(right, down, mirrored)
    found = averaging._predict_view(subject.model, subject.tokenizer, dark, "soft", view)
    middle = project_weak_perspective(torch.zeros(1, 1, 3), found.cam)[0, 0]
    torch.testing.assert_close(middle, (torch.tensor([column, row]) + 0.5) * 2 / size - 1, atol=1e-5, rtol=0)


def test_a_moved_crop_repeats_its_edge(images) -> None:
    crops = images.float()
    moved = averaging._look(crops, averaging._View(right=5))
    torch.testing.assert_close(moved[..., 5:], crops[..., :-5], atol=0, rtol=0)
    torch.testing.assert_close(moved[..., :5], crops[..., :1].expand(-1, -1, -1, 5), atol=0, rtol=0)


def test_unknown_choices_are_named(subject, images) -> None:
    with pytest.raises(ValueError, match="average=twice is not known"):
        predict(subject, images, "soft", "twice")
    with pytest.raises(ValueError, match="decode=hard is not known"):
        predict(subject, images, "hard")
    with pytest.raises(ValueError, match="average=twice is not known"):
        _of_folder(SHIPPED, average="twice")


# Draws


def drawn(
    subject: Subject, images: Tensor, n: int, steps: int, temperature: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    features = predict(subject, images, "argmax").features
    return draw(subject, features, n, steps, temperature, "default", torch.Generator().manual_seed(seed))


def test_draws_follow_from_the_generator_and_are_scored(subject, images) -> None:
    tokens, score = drawn(subject, images, 4, 3)
    assert tokens.shape == (3, 4, subject.model.n_tokens)
    assert score.shape == (3, 4)
    again = drawn(subject, images, 4, 3)
    torch.testing.assert_close(again, (tokens, score), atol=0, rtol=0)
    assert not torch.equal(drawn(subject, images, 4, 3, seed=1)[0], tokens)


def test_colder_draws_are_likelier(subject, images) -> None:
    scores = [drawn(subject, images, 8, 3, temperature)[1].mean().item() for temperature in (0.2, 1.0, 5.0)]
    assert scores == sorted(scores, reverse=True), scores
    assert scores[0] > scores[-1] + 1


def test_sampled_meshes_are_those_of_the_tokens(subject, images) -> None:
    tokens, _ = drawn(subject, images, 3, 2)
    meshes = torch.stack(list(sampled_canonical(subject, tokens)), 1)
    assert meshes.shape == (3, 3, subject.tokenizer.n_vertices, 3)
    for person in range(3):
        torch.testing.assert_close(meshes[person], subject.tokenizer.decode(tokens[person]), atol=1e-5, rtol=0)


# Loading


def test_the_shipped_weights_say_how_they_predict(toy_weights) -> None:
    shipped = _of_folder(SHIPPED)
    assert (shipped.decode, shipped.average) == ("soft", "flip")
    chosen = _of_folder(SHIPPED, decode="argmax", average="none")
    assert (chosen.decode, chosen.average) == ("argmax", "none")
    silent = _of_folder(toy_weights)
    assert (silent.decode, silent.average) == ("argmax", "none")
    assert shipped.crop["size"] == 192


def test_missing_and_damaged_weights_are_named(toy_weights, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.safetensors is missing"):
        _of_folder(tmp_path)
    os.link(toy_weights / "tokenizer.safetensors", tmp_path / "tokenizer.safetensors")
    with pytest.raises(FileNotFoundError, match=r"cvqmae\.safetensors is missing"):
        _of_folder(tmp_path)
    whole = (toy_weights / "cvqmae.safetensors").read_bytes()
    (tmp_path / "cvqmae.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cvqmae\.safetensors"):
        _of_folder(tmp_path)
    (tmp_path / "cvqmae.safetensors").write_bytes((SHIPPED / "cvqmae.safetensors").read_bytes())
    with pytest.raises(ValueError, match="do not belong together: n_tokens"):
        _of_folder(tmp_path)


def test_unknown_options_are_named(toy_weights) -> None:
    with pytest.raises(ValueError, match="device=tpu is not known"):
        _of_folder(toy_weights, device="tpu")
    with pytest.raises(ValueError, match="precision=fp8 is not known"):
        _of_folder(toy_weights, precision="fp8")


@needs_template
def test_an_experiment_s_released_files(tmp_path, monkeypatch) -> None:
    folder = write_project(tmp_path, {"mega_resnet": SMALL})
    monkeypatch.chdir(folder)
    config = composed("demo", "experiment=mega_resnet", "device=cpu", *SMALL)
    subject = Subject.load(config, SMPLHBody("body_models"))
    assert (subject.decode, subject.average) == ("argmax", "none")
    assert subject.crop["size"] == 224
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    found = predict(subject, images, subject.decode, "flip")
    assert found.mesh.shape == (1, 6890, 3)
    assert found.mesh.isfinite().all()
    (folder / config.weights).rename(folder / "away")
    with pytest.raises(FileNotFoundError, match="checkpoint/CVQMAE/mega_resnet is missing: released image model"):
        Subject.load(config, SMPLHBody("body_models"))
