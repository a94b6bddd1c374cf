"""What an evaluation predicts: test-time augmentation, samples, and loading the weights."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import roma
import torch
import trimesh
from torch import Tensor

import mega
from mega import test_time_augmentation as augmentation
from mega.bodies import AnnyBody
from mega.evaluation.evaluate import Evaluator, Options, draw_samples
from mega.geometry import project_weak_perspective
from mega.predictor import Predictor
from mega.sampling import Prediction
from mega.test_time_augmentation import TTA_CHOICES, predict_mesh
from mesh_vq_vae import mirrored_vertices
from tests.helpers.fake_files import SMALL, TEMPLATE, needs_template, write_project
from tests.helpers.toy import toy_tokenizer

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoint" / "anny_lite"


@pytest.fixture(scope="module")
def predictor(toy_weights) -> Predictor:
    return mega.load(toy_weights, "cpu")


@pytest.fixture(scope="module")
def images(predictor) -> Tensor:
    size = predictor.crop.size
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def predict(predictor: Predictor, images: Tensor, decode: str, tta: str = "none") -> Prediction:
    return predict_mesh(predictor.model, predictor.tokenizer, images, decode, tta)


# Left and right


@pytest.mark.parametrize("mesh", ["toy", "anny", pytest.param("smpl", marks=needs_template)])
def test_the_sides_of_a_mesh_match_face_by_face(mesh) -> None:
    """Also on SMPL's mesh in a pose, where the nearest vertex on the other side is another for half of them."""
    if mesh == "smpl":
        loaded = trimesh.load(TEMPLATE, process=False)
        template, faces = np.asarray(loaded.vertices), np.asarray(loaded.faces)
    else:
        tokenizer = toy_tokenizer() if mesh == "toy" else mega.load(SHIPPED, "cpu").tokenizer
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


def test_plain_prediction_is_the_demo_s(predictor, images) -> None:
    image = images[0].permute(1, 2, 0).numpy()
    half = predictor.crop.size / predictor.crop.margin / 2
    middle = predictor.crop.size / 2
    people = predictor(image, np.array([[middle - half, middle - half, middle + half, middle + half]]))
    found = predictor.predict(images[:1])
    np.testing.assert_array_equal(found.tokens, people.tokens)
    shift = people.vertices[0].mean(axis=0) - found.mesh[0].mean(dim=0).numpy()
    np.testing.assert_allclose(found.mesh[0] + shift, people.vertices[0], atol=1e-5 * abs(shift[2]) + 1e-5)


@pytest.mark.parametrize("tta", ["flip", "flip_shift"])
@pytest.mark.parametrize("decode", ["argmax", "soft"])
def test_who_is_seen_in_a_mirror_is_predicted_in_a_mirror(predictor, images, tta, decode) -> None:
    """With the mirror among the views, an untrained model too knows no left and right, in body, rotation and place."""
    across = torch.tensor([-1.0, 1.0, 1.0])
    straight, seen = (predict(predictor, x, decode, tta) for x in (images, images.flip(-1)))
    mirrored = predictor.tokenizer.mirrored
    back = seen.canonical[:, mirrored] * across
    torch.testing.assert_close(back, straight.canonical, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.mesh[:, mirrored] * across, straight.mesh, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.cam * torch.tensor([1.0, -1.0, 1.0]), straight.cam, atol=1e-5, rtol=0)
    without = predict(predictor, images.flip(-1), decode)
    assert (without.cam * torch.tensor([1.0, -1.0, 1.0]) - predict(predictor, images, decode).cam).abs().max() > 1e-3


@pytest.mark.parametrize("tta", TTA_CHOICES)
def test_averages_are_rotations_and_the_same_again(predictor, images, tta) -> None:
    found = predict(predictor, images, "soft", tta)
    assert roma.is_rotation_matrix(found.rotation, epsilon=1e-5)
    again = predict(predictor, images.float(), "soft", tta)
    for name in ("canonical", "rotation", "cam", "tokens"):
        torch.testing.assert_close(getattr(again, name), getattr(found, name), atol=0, rtol=0)
    torch.testing.assert_close(found.mesh, found.canonical @ found.rotation.mT)


def test_views_are_averaged(predictor, images) -> None:
    parts = (predictor.model, predictor.tokenizer, images.float(), "soft")
    views = [augmentation._predict_view(*parts, view) for view in augmentation._views("shift", 64)]
    assert len(views) == 5
    found = predict(predictor, images, "soft", "shift")
    torch.testing.assert_close(found.canonical, torch.stack([v.canonical for v in views]).mean(0))
    torch.testing.assert_close(found.cam, torch.stack([v.cam for v in views]).mean(0))
    torch.testing.assert_close(
        found.rotation, roma.special_procrustes(torch.stack([v.rotation for v in views]).mean(0))
    )


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("right", "down"), [(3, 0), (-3, 0), (0, 3), (0, -3)])
def test_points_come_back_from_a_view_to_where_they_are(predictor, images, monkeypatch, right, down, mirrored) -> None:
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

    seen, real, look = {}, augmentation.predict_deterministic, augmentation._look
    monkeypatch.setattr(augmentation, "predict_deterministic", point_at_the_light)
    monkeypatch.setattr(augmentation, "_look", lambda crops, view: seen.setdefault("crop", look(crops, view)))
    view = augmentation._View(right, down, mirrored)
    found = augmentation._predict_view(predictor.model, predictor.tokenizer, dark, "soft", view)
    middle = project_weak_perspective(torch.zeros(1, 1, 3), found.cam)[0, 0]
    torch.testing.assert_close(middle, (torch.tensor([column, row]) + 0.5) * 2 / size - 1, atol=1e-5, rtol=0)


def test_a_moved_crop_repeats_its_edge(images) -> None:
    crops = images.float()
    moved = augmentation._look(crops, augmentation._View(right=5))
    torch.testing.assert_close(moved[..., 5:], crops[..., :-5], atol=0, rtol=0)
    torch.testing.assert_close(moved[..., :5], crops[..., :1].expand(-1, -1, -1, 5), atol=0, rtol=0)


def test_unknown_choices_are_named(predictor, images) -> None:
    with pytest.raises(ValueError, match="tta=twice is not known"):
        predict(predictor, images, "soft", "twice")
    with pytest.raises(ValueError, match="decode=hard is not known"):
        predict(predictor, images, "hard")
    with pytest.raises(ValueError, match="tta=twice is not known"):
        mega.load(SHIPPED, "cpu", tta="twice")


# Draws


def drawn(
    predictor: Predictor, images: Tensor, n: int, steps: int, temperature: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    prediction, options = predict(predictor, images, "argmax"), Options(n, steps, temperature)
    return draw_samples(predictor.model, prediction, options, torch.Generator().manual_seed(seed))


def test_draws_follow_from_the_generator_and_are_scored(predictor, images) -> None:
    tokens, score = drawn(predictor, images, 4, 3)
    assert tokens.shape == (3, 4, predictor.model.n_tokens)
    assert score.shape == (3, 4)
    again = drawn(predictor, images, 4, 3)
    torch.testing.assert_close(again, (tokens, score), atol=0, rtol=0)
    assert not torch.equal(drawn(predictor, images, 4, 3, seed=1)[0], tokens)


def test_colder_draws_are_likelier(predictor, images) -> None:
    scores = [drawn(predictor, images, 8, 3, temperature)[1].mean().item() for temperature in (0.2, 1.0, 5.0)]
    assert scores == sorted(scores, reverse=True), scores
    assert scores[0] > scores[-1] + 1


def test_sampled_meshes_are_those_of_the_tokens(predictor, images) -> None:
    prediction, options = predictor.predict(images), Options(samples=3, steps=2)
    meshes, score = Evaluator._draw(SimpleNamespace(predictor=predictor, options=options), prediction, group=0)
    tokens, expected = drawn(predictor, images, 3, 2)
    torch.testing.assert_close(score, expected)
    assert meshes.shape == (3, 3, predictor.tokenizer.n_vertices, 3)
    for person in range(3):
        canonical = predictor.tokenizer.decode(tokens[person])
        torch.testing.assert_close(meshes[person], canonical @ prediction.rotation[person].T, atol=1e-5, rtol=0)


# Loading


def test_the_shipped_weights_say_how_they_predict(toy_weights) -> None:
    shipped = mega.load(SHIPPED, "cpu")
    assert (shipped.decode, shipped.tta) == ("soft", "flip")
    chosen = mega.load(SHIPPED, "cpu", decode="argmax", tta="none")
    assert (chosen.decode, chosen.tta) == ("argmax", "none")
    silent = mega.load(toy_weights, "cpu")
    assert (silent.decode, silent.tta) == ("argmax", "none")
    assert shipped.crop.size == 192


def test_missing_and_damaged_weights_are_named(toy_weights, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cvqmae\.safetensors is missing"):
        mega.load(tmp_path, "cpu")
    os.link(toy_weights / "cvqmae.safetensors", tmp_path / "cvqmae.safetensors")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.safetensors is missing"):
        mega.load(tmp_path, "cpu")
    os.link(toy_weights / "tokenizer.safetensors", tmp_path / "tokenizer.safetensors")
    whole = (toy_weights / "cvqmae.safetensors").read_bytes()
    (tmp_path / "cvqmae.safetensors").unlink()
    (tmp_path / "cvqmae.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cvqmae\.safetensors"):
        mega.load(tmp_path, "cpu")
    (tmp_path / "cvqmae.safetensors").write_bytes((SHIPPED / "cvqmae.safetensors").read_bytes())
    with pytest.raises(ValueError, match="do not belong together: n_tokens"):
        mega.load(tmp_path, "cpu")


def test_unknown_options_are_named(toy_weights) -> None:
    with pytest.raises(ValueError, match="device=tpu"):
        mega.load(toy_weights, device="tpu")
    with pytest.raises(ValueError, match="precision=fp8 is not known"):
        mega.load(toy_weights, "cpu", precision="fp8")


@needs_template
def test_an_experiment_s_released_files(tmp_path, monkeypatch) -> None:
    folder = write_project(tmp_path, {"mega_resnet": SMALL})
    monkeypatch.chdir(folder)
    predictor = mega.load("mega_resnet", "cpu")
    assert (predictor.decode, predictor.tta) == ("argmax", "none")
    assert predictor.crop.size == 224
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    found = predict(predictor, images, predictor.decode, "flip")
    assert found.mesh.shape == (1, 6890, 3)
    assert found.mesh.isfinite().all()
    (folder / "checkpoint/CVQMAE/mega_resnet").rename(folder / "away")
    with pytest.raises(FileNotFoundError, match="checkpoint/CVQMAE/mega_resnet is missing"):
        mega.load("mega_resnet", "cpu")
