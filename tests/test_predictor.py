"""The predictor's promises: frames, batches, seeds; and what is read from and written to disk."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import mega
from mega.checkpoints import PUBLISHED_SETUPS
from mega.export import draw_sheet, encode_mesh, scale_to_draw, write_together
from mega.geometry import standard_deviation
from mega.photos import InputError, find_pictures, output_names, read_picture
from mega.predictor import Predictor, Sampling
from mega.sampling import Prediction, select_codes
from mega.test_time_augmentation import predict_mesh
from tests.helpers.toy import toy_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "checkpoint" / "anny_lite"
BOXES = np.array([[20.0, 10, 120, 210], [130, 30, 260, 220], [-40, 60, 90, 300]])


@pytest.fixture(scope="module")
def predictor(toy_weights):
    return mega.load(toy_weights)


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def people(predictor, image):
    return predictor(image, BOXES, Sampling(samples=4, steps=3))


def project(points, people):
    return points[..., :2] / points[..., 2:] * people.focal + people.principal_point


def test_shapes_and_kinds_are_those_of_the_contract(people, predictor):
    n_vertices, n_tokens = predictor.tokenizer.n_vertices, predictor.tokenizer.n_tokens
    assert people.vertices.shape == (3, n_vertices, 3)
    assert people.tokens.shape == (3, n_tokens)
    assert people.keypoints3d.shape == (3, 23, 3)
    assert people.keypoints2d.shape == (3, 23, 2)
    assert people.samples.shape == (3, 4, n_vertices, 3)
    assert people.uncertainty.shape == (3, n_vertices)
    for name in ("vertices", "boxes", "keypoints3d", "keypoints2d", "samples", "uncertainty"):
        assert getattr(people, name).dtype == np.float32
    np.testing.assert_array_equal(people.principal_point, [160, 120])
    assert people.focal == pytest.approx(1000 / 224 * 320)


def test_keypoints_are_the_regressor_on_the_vertices(people, predictor):
    expected = predictor.tokenizer.keypoint_regressor.numpy() @ people.vertices
    np.testing.assert_allclose(people.keypoints3d, expected, atol=1e-4)
    np.testing.assert_allclose(people.keypoints2d, project(people.keypoints3d, people), atol=1e-2)


@pytest.mark.parametrize("focal", [None, 300.0, 5000.0])
def test_the_mesh_lies_where_the_crop_camera_says(predictor, image, focal):
    """The weak perspective camera on the enlarged square and the full camera agree at the body's depth."""
    prediction = predictor.predict(predictor.crops(image, BOXES))
    people = predictor(image, BOXES, focal=focal)
    side = (BOXES[:, 2:] - BOXES[:, :2]).max(1) * predictor.crop.margin
    centre = (BOXES[:, :2] + BOXES[:, 2:]) / 2
    cam = prediction.cam.numpy()
    expected = centre + side[:, None] / 2 * cam[:, :1] * cam[:, 1:]
    # The canonical origin, wherever the camera put it: the template is its mean.
    canonical = predictor.tokenizer.decode(prediction.tokens) @ prediction.rotation.transpose(1, 2)
    origin = (people.vertices - canonical.numpy()).mean(1)
    np.testing.assert_allclose(project(origin, people), expected, atol=0.05)
    np.testing.assert_allclose(people.focal / origin[:, 2], side / 2 * cam[:, 0], rtol=1e-4)


def test_people_together_equal_people_one_by_one(predictor, image, people):
    sampling = Sampling(samples=4, steps=3)
    for p, box in enumerate(BOXES):
        alone = predictor(image, box[None], sampling)
        np.testing.assert_array_equal(alone.tokens[0], people.tokens[p])
        np.testing.assert_allclose(alone.vertices[0], people.vertices[p], atol=1e-3)
        np.testing.assert_allclose(alone.samples[0], people.samples[p], atol=1e-3)


def test_the_same_seed_draws_the_same_and_another_seed_does_not(predictor, image, people):
    again = predictor(image, BOXES, Sampling(samples=4, steps=3))
    other = predictor(image, BOXES, Sampling(samples=4, steps=3, seed=1))
    np.testing.assert_array_equal(again.samples, people.samples)
    assert (other.samples != people.samples).any()
    np.testing.assert_array_equal(other.vertices, people.vertices)  # the likeliest mesh is not drawn


def test_draws_leave_the_global_random_state_alone(predictor, image):
    before = torch.get_rng_state()
    predictor(image, BOXES[:1], Sampling(samples=2, steps=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_uncertainty_is_the_standard_deviation_of_the_samples(people):
    expected = np.sqrt(people.samples.var(axis=1).sum(axis=-1))
    np.testing.assert_allclose(people.uncertainty, expected, atol=1e-5)
    assert people.uncertainty.max() > 0


def test_spread_of_one_sample_is_zero():
    assert not standard_deviation(torch.rand(2, 1, 5, 3)).any()


@pytest.mark.parametrize("tta", ["none", "flip", "flip_shift"])
def test_a_prediction_is_averaged_as_asked(toy_weights, image, tta):
    predictor, plain = mega.load(toy_weights, tta=tta), mega.load(toy_weights)
    crops, sampling = predictor.crops(image, BOXES), Sampling(samples=2, steps=2)
    prediction, alone = predictor.predict(crops), plain.predict(crops)
    expected = predict_mesh(predictor.model, predictor.tokenizer, crops, "argmax", tta)
    for name in ("canonical", "rotation", "cam", "tokens"):
        torch.testing.assert_close(getattr(prediction, name), getattr(expected, name), atol=0, rtol=0)
    assert torch.equal(prediction.cam, alone.cam) == (tta == "none")
    people, others = predictor(image, BOXES, sampling), plain(image, BOXES, sampling)
    assert (people.vertices == others.vertices).all() == (tta == "none")
    # Samples are drawn from the crop itself, and take the averaged rotation and camera: distances stay.
    lengths = [np.linalg.norm(np.diff(x.samples, axis=2), axis=-1) for x in (people, others)]
    np.testing.assert_allclose(*lengths, atol=1e-4)


def test_in_a_mirrored_picture_are_mirrored_people(toy_weights, image):
    """Vertices with left and right exchanged; without tta=flip, an untrained model knows nothing of mirrors."""
    square = image[:64, :64]  # as large as a crop, so that nothing is interpolated
    half = 32 / 1.1  # the margin makes it the whole picture
    box = np.array([[32 - half, 32 - half, 32 + half, 32 + half]])
    distance = {}
    for tta in ("none", "flip"):
        predictor = mega.load(toy_weights, tta=tta)
        straight, seen = (predictor(np.ascontiguousarray(x), box).vertices[0] for x in (square, square[:, ::-1]))
        back = seen[predictor.tokenizer.mirrored] * [-1, 1, 1]
        distance[tta] = np.abs(back - straight).max()
    assert distance["flip"] < 1e-4 < 0.1 < distance["none"]


def test_the_weights_say_what_is_averaged_unless_one_is_chosen(toy_weights):
    assert mega.load(toy_weights).tta == "none"
    shipped = mega.load("anny_lite")
    assert (shipped.decode, shipped.tta) == ("soft", "flip")
    chosen = mega.load(SHIPPED, decode="argmax", tta="none")
    assert (chosen.decode, chosen.tta) == ("argmax", "none")
    with pytest.raises(ValueError, match="tta=twice is not known; choose from none, flip, shift"):
        mega.load(toy_weights, tta="twice")


@pytest.mark.parametrize("name", ["mega_hmr", "nowhere/weights"])
def test_an_unknown_name_lists_the_choices(name):
    with pytest.raises(FileNotFoundError, match=f"{name} is missing.*anny_lite, mega_hrnet, mega_resnet, mega_vit"):
        mega.load(name)


def test_a_missing_released_file_says_where_it_is_from(tmp_path):
    for name, setup in PUBLISHED_SETUPS.items():
        with pytest.raises(
            FileNotFoundError, match=f"{setup.path} is missing: released image model, from https://zenodo"
        ):
            mega.load(name, root=tmp_path)


def test_importing_the_package_is_cheap():
    code = "import sys, mega; assert not {'torch', 'numpy', 'omegaconf'} & set(sys.modules); mega.load"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_tokenizer_that_knows_no_sides_is_told_at_once(predictor):
    parts = (predictor.model, predictor.crop)
    tokenizer = toy_tokenizer()
    tokenizer.template = None
    with pytest.raises(ValueError, match="use tta=none"):
        Predictor(tokenizer, *parts, tta="flip")
    assert Predictor(tokenizer, *parts).tta == "none"


def test_nobody_is_an_empty_result(predictor, image):
    nobody = predictor(image, np.zeros((0, 4)), Sampling(samples=4))
    assert len(nobody) == 0
    assert nobody.samples.shape == (0, 4, predictor.tokenizer.n_vertices, 3)
    assert draw_sheet(image, nobody).shape[1] > 600


def test_tightened_boxes_surround_the_prediction(predictor, image):
    whole = np.array([[0.0, 0, 320, 240]])
    first = predictor(image, whole)
    points = project(first.vertices[0], first)
    expected = np.concatenate([points.min(0), points.max(0)])
    np.testing.assert_allclose(predictor.tighten(image, whole)[0], expected, atol=0.01)


def test_a_wild_first_guess_does_not_lead_out_of_the_picture(predictor, image, monkeypatch):
    whole = np.array([[0.0, 0, 320, 240]])
    away = predictor(image, whole)
    away = dataclasses.replace(away, vertices=away.vertices + np.float32([100, 0, 0]))
    monkeypatch.setattr(Predictor, "__call__", lambda *_: away)
    np.testing.assert_array_equal(predictor.tighten(image, whole, passes=2), whole)


@pytest.mark.parametrize("max_side", [160, 320, 1024])
def test_the_drawing_has_the_people_where_the_arrays_say(image, people, max_side):
    picture, focal, centre = scale_to_draw(image, people, max_side)
    scale = picture.shape[1] / 320
    assert max(picture.shape) in (max_side, 512)  # small pictures are enlarged to 512
    drawn = dataclasses.replace(people, focal=focal, principal_point=centre)
    expected = (people.keypoints2d + 0.5) * scale - 0.5
    np.testing.assert_allclose(project(people.keypoints3d, drawn), expected, atol=0.02)


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_meshes_read_back_upright(people, kind):
    content = encode_mesh(people.vertices[0], people.faces, np.array([0.8, 0.6, 0.5]), kind)
    mesh = trimesh.load(io.BytesIO(content), file_type=kind, process=False, force="mesh", maintain_order=True)
    np.testing.assert_allclose(mesh.vertices, people.vertices[0] * [1, -1, -1], atol=1e-4)
    np.testing.assert_array_equal(mesh.faces, people.faces)


def test_files_of_a_picture_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"old")
    (tmp_path / "b.bin").mkdir()  # in the way of the second file
    with pytest.raises(InputError, match="cannot be written"):
        write_together(tmp_path, "a", {"missing/a.npz": b"new", "c.bin": b"new"})
    assert (tmp_path / "a.npz").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.bin"]


def test_meshes_of_people_who_left_are_removed(tmp_path):
    for name in ("a_p0.glb", "a_p1.glb", "a_p1.obj", "a_p1_p0.glb", "ab_p1.glb"):
        (tmp_path / name).write_bytes(b"old")
    write_together(tmp_path, "a", {"a_p0.glb": b"new"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_p0.glb", "a_p1_p0.glb", "ab_p1.glb"]
    assert (tmp_path / "a_p0.glb").read_bytes() == b"new"


def test_output_names_never_clash(tmp_path):
    paths = [tmp_path / p for p in ("x/a.jpg", "x/a.png", "x/A.gif", "y/a.jpg", "z/x/a.jpg", "x/b.jpg", "x/a_png.jpg")]
    names = output_names(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert names[5] == "b"
    assert output_names([tmp_path / "a.jpg", tmp_path / "a.png"]) == ["a_jpg", "a_png"]


def test_find_pictures(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert [p.name for p in find_pictures(str(tmp_path))] == ["a.png", "b.JPG"]
    assert [p.name for p in find_pictures(f"{tmp_path}/*.p*")] == ["a.png"]
    assert [p.name for p in find_pictures(f"{tmp_path}/notes.txt")] == ["notes.txt"]
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        find_pictures(f"{tmp_path}/nowhere")


def gradient(dtype=np.uint8, top=255):
    return np.linspace(0, top, 40 * 30).reshape(30, 40).astype(dtype)


def test_grey_alpha_palette_and_sixteen_bit_pictures_become_rgb(tmp_path):
    grey = Image.fromarray(gradient())
    rgb = Image.merge("RGB", [grey] * 3)
    clear = rgb.copy()
    clear.putalpha(Image.new("L", rgb.size, 0))
    variants = {
        "grey.png": grey,
        "palette.gif": rgb.quantize(256),
        "sixteen.png": Image.fromarray(gradient(np.uint16, 65535)),
        "sixteen.tif": Image.fromarray(gradient(np.uint16, 65535)),
        "cmyk.jpg": rgb.convert("CMYK"),
        "cmyk.tif": rgb.convert("CMYK"),
        "float.tif": Image.fromarray(gradient(np.float32, 1.0)),
        "grey_alpha.png": grey.convert("LA"),
    }
    for name, picture in variants.items():
        picture.save(tmp_path / name)
        pixels = read_picture(tmp_path / name)
        assert pixels.shape == (30, 40, 3), name
        assert pixels.dtype == np.uint8, name
        assert np.abs(pixels.astype(int) - gradient()[..., None]).max() <= 6, name
    clear.save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png") == 255).all()


def test_sixteen_bit_colour_is_read(tmp_path):
    colour = np.stack([gradient(np.uint16, 65535)] * 3, axis=-1)
    colour[..., 0] = 0
    cv2.imwrite(str(tmp_path / "a.png"), colour)  # BGR: blue is zero
    pixels = read_picture(tmp_path / "a.png").astype(int)
    assert not pixels[..., 2].any()
    assert np.abs(pixels[..., 0] - gradient()).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    upright = Image.new("RGB", (40, 30), "white")
    upright.paste("red", (0, 0, 10, 10))  # red at the top left
    turned = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]
    stored = upright
    for operation in turned:
        stored = stored.transpose(Image.Transpose(operation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), np.asarray(upright))


@pytest.mark.parametrize("size", [(16, 16), (3000, 16), (16, 3000)])
def test_pictures_of_odd_shapes_are_drawn(predictor, size):
    image = np.full((size[1], size[0], 3), 128, np.uint8)
    someone = predictor(image, np.array([[0.0, 0, *size]]), Sampling(samples=2, steps=2))
    assert draw_sheet(image, someone, max_side=256).dtype == np.uint8


def test_soft_codes_are_the_mean_and_sharpen_to_the_likeliest(predictor):
    """Where one code is certain both decodings agree; between two equally likely ones, soft lies in the middle."""
    tokenizer = predictor.tokenizer
    tokens = torch.randint(tokenizer.codebook_size, (2, tokenizer.n_tokens), generator=torch.Generator().manual_seed(0))
    certain = 100.0 * torch.nn.functional.one_hot(tokens, tokenizer.codebook_size)
    prediction = Prediction(
        tokens, certain, torch.eye(3).expand(2, 3, 3), torch.zeros(2, 3), features=torch.zeros(2, 1, 1, 1)
    )
    likeliest = select_codes(tokenizer, prediction, "argmax")
    torch.testing.assert_close(select_codes(tokenizer, prediction, "soft"), likeliest)
    torch.testing.assert_close(tokenizer.decode_latents(likeliest), tokenizer.decode(tokens))
    prediction.logits[0, 0, (tokens[0, 0] + 1) % tokenizer.codebook_size] = 100.0
    both = [tokens[0, 0].item(), (tokens[0, 0].item() + 1) % tokenizer.codebook_size]
    middle = tokenizer.codebook[both].mean(0)
    torch.testing.assert_close(select_codes(tokenizer, prediction, "soft")[0, 0], middle)
    with pytest.raises(ValueError, match="choose from argmax, soft"):
        select_codes(tokenizer, prediction, "best")
