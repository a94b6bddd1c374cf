"""The predictor's promises: frames, batches, seeds; and what is read from and written to disk."""

import dataclasses
import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from PIL import ExifTags, Image, TiffImagePlugin

import mega
from mega import photos
from mega.checkpoints import PUBLISHED_SETUPS
from mega.export import draw_sheet, encode_mesh, scale_to_draw, write_together
from mega.geometry import square_crop, standard_deviation
from mega.photos import InputError, exif_focal, find_pictures, open_picture, output_names, read_picture
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


def smooth(width, height):
    noise = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


LARGE = (1331, 973)  # not multiples of 8, and more than 8 crops of 64 px
LARGE_BOXES = np.array([[0.0, 0, *LARGE], [-200, 500, 500, 1200], [900, -50, 1500, 500], [100, 150, 260, 400]])


@pytest.fixture(scope="module")
def large(predictor):
    """A picture, its crops from all pixels, and where these are not at the sharp edges to black."""
    upright = smooth(*LARGE)
    exact, white = (
        np.stack([square_crop(pixels, box, 64, predictor.crop.margin) for box in LARGE_BOXES])
        for pixels in (upright, np.full_like(upright, 255))
    )
    inside = np.stack([cv2.erode(each, np.ones((5, 5))) == 255 for each in white])
    return upright, exact, inside


def write_rotated(path, upright, orientation):
    """A file that an EXIF orientation turns into `upright`, and nothing else in it."""
    turned = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]
    stored = Image.fromarray(upright)
    for operation in turned:
        stored = stored.transpose(Image.Transpose(operation))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(path, exif=exif, quality=95, subsampling=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_and_drawing_of_a_large_file_are_those_of_its_pixels(
    tmp_path, predictor, people, large, orientation, monkeypatch
):
    upright, exact, inside = large
    write_rotated(tmp_path / "a.jpg", upright, orientation)
    picture = open_picture(tmp_path / "a.jpg")
    assert picture.shape == upright.shape
    for source in (picture, upright):
        crops = predictor.crops(source, LARGE_BOXES).permute(0, 2, 3, 1).numpy()
        for crop, expected, here in zip(crops, exact, inside, strict=True):
            assert here.mean() > 0.2
            assert np.abs(crop - expected)[here].mean() < 0.8  # 2 if shifted by half a pixel of the reduced picture
        drawn, _, _ = scale_to_draw(source, people, 300)
        expected = cv2.resize(upright, drawn.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(drawn.astype(int) - expected).mean() < 2  # 15 if it were turned wrongly
    # All pixels, and crops from them, also where the file has so many that Pillow would need too much memory
    pixels, crops = read_picture(tmp_path / "a.jpg"), predictor.crops(picture, LARGE_BOXES[3:])
    np.testing.assert_allclose(pixels.astype(int), upright, atol=12)
    monkeypatch.setattr(photos, "_MANY_PIXELS", 1000)
    picture = open_picture(tmp_path / "a.jpg")
    np.testing.assert_array_equal(picture.reduced(1).pixels, pixels)
    np.testing.assert_array_equal(predictor.crops(picture, LARGE_BOXES[3:]), crops)


def test_crops_of_up_to_eight_times_their_size_are_cut_from_all_pixels(predictor):
    upright = smooth(*LARGE)
    box = np.array([300, 500, 300 + 64 * 7.1, 850])
    np.testing.assert_array_equal(
        predictor.crops(upright, box[None])[0].permute(1, 2, 0), square_crop(upright, box, 64, predictor.crop.margin)
    )


def test_a_large_file_is_decoded_only_as_finely_as_needed(tmp_path, predictor, people, monkeypatch):
    factors = []
    decode = photos._decode
    monkeypatch.setattr(photos, "_decode", lambda file, factor: factors.append(factor) or decode(file, factor))
    Image.fromarray(smooth(8064, 6048)).save(tmp_path / "a.jpg", quality=60)
    picture = open_picture(tmp_path / "a.jpg")
    whole = np.array([[0.0, 0, 8064, 6048]])
    first = predictor.crops(picture, whole)
    scale_to_draw(picture, people, 1024)
    assert set(factors) <= {4, 8}
    # Later on all pixels are needed, and what was done before does not change what comes after.
    predictor.crops(picture, np.array([[0.0, 0, 300, 400]]))
    assert factors[-1] == 1
    torch.testing.assert_close(predictor.crops(picture, whole), first, atol=0, rtol=0)
    torch.testing.assert_close(predictor.crops(open_picture(tmp_path / "a.jpg"), whole), first, atol=0, rtol=0)


def test_memory_does_not_grow_with_the_picture(predictor, people):
    peaks = []
    for side in (2000, 6000):
        pixels = np.zeros((side, side, 3), np.uint8)
        tracemalloc.start()
        predictor.crops(pixels, np.array([[0.0, 0, side, side]]))
        scale_to_draw(pixels, people, 512)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 3 * 6000 * 512 * 3  # and the strips in which it is reduced


def png_header(width, height):
    """The beginning of a PNG file, without pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\1\0IDAT"


@pytest.mark.filterwarnings("error")
def test_only_far_too_many_pixels_are_refused_and_pillow_is_quiet(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "bomb.png").write_bytes(png_header(30_000, 30_000))
    with pytest.raises(InputError, match="has more than 300 million pixels; scale it down first"):
        open_picture(tmp_path / "bomb.png")
    (tmp_path / "camera.png").write_bytes(png_header(16_320, 12_240))
    with pytest.raises(InputError, match=r"camera\.png is damaged"):
        open_picture(tmp_path / "camera.png")
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_data_is_no_exif_data(tmp_path, exif):
    Image.fromarray(smooth(40, 30)).save(tmp_path / "a.jpg", exif=exif)
    picture = open_picture(tmp_path / "a.jpg")
    assert (picture.shape, picture.focal) == ((30, 40, 3), None)


TAG = ExifTags.Base
SENSOR = {TAG.FocalLength: 4.2, TAG.FocalPlaneXResolution: 4000 / 5.6, TAG.FocalPlaneResolutionUnit: 4}


@pytest.mark.parametrize(
    ("tags", "size", "focal"),
    [
        ({TAG.FocalLengthIn35mmFilm: 26}, (4000, 3000), 26 / 36 * 4000),
        ({TAG.FocalLengthIn35mmFilm: 26}, (3000, 4000), 26 / 36 * 4000),  # upright
        ({TAG.FocalLengthIn35mmFilm: 26}, (640, 540), 462.2),
        ({TAG.FocalLengthIn35mmFilm: 26} | SENSOR, (800, 600), 26 / 36 * 800),  # the equivalent goes first
        ({TAG.FocalLengthIn35mmFilm: 26, TAG.ExifImageWidth: 4000, TAG.ExifImageHeight: 3000}, (800, 600), 577.8),
        ({TAG.FocalLengthIn35mmFilm: 26, TAG.ExifImageWidth: 4000, TAG.ExifImageHeight: 3000}, (600, 800), 577.8),
        # cut to a square, and to a strip; its pixels are the camera's
        ({TAG.FocalLengthIn35mmFilm: 26, TAG.ExifImageWidth: 4000, TAG.ExifImageHeight: 3000}, (900, 900), 2888.9),
        ({TAG.FocalLengthIn35mmFilm: 26, TAG.ExifImageWidth: 4000, TAG.ExifImageHeight: 3000}, (4000, 90), 2888.9),
        # the size of a thumbnail is no cut
        ({TAG.FocalLengthIn35mmFilm: 26, TAG.ExifImageWidth: 160, TAG.ExifImageHeight: 160}, (800, 600), 577.8),
        (SENSOR, (4000, 3000), 3000),
        (SENSOR | {TAG.FocalLengthIn35mmFilm: 0}, (4000, 3000), 3000),  # 0: not known
        (SENSOR | {TAG.ExifImageWidth: 4000, TAG.ExifImageHeight: 3000}, (800, 600), 600),  # resized
        (SENSOR | {TAG.DigitalZoomRatio: 2}, (4000, 3000), 6000),
        (SENSOR | {TAG.DigitalZoomRatio: 0}, (4000, 3000), 3000),  # 0: not used
        ({**SENSOR, TAG.FocalPlaneXResolution: 40000 / 5.6, TAG.FocalPlaneResolutionUnit: 3}, (4000, 3000), 3000),
        ({TAG.FocalLength: 50, TAG.FocalPlaneXResolution: 2540}, (4000, 3000), 5000),  # inches if it does not say
        ({TAG.FocalLength: 4.2}, (4000, 3000), None),
        ({TAG.FocalLength: 4.2, TAG.FocalPlaneXResolution: 700, TAG.FocalPlaneResolutionUnit: 1}, (4000, 3000), None),
        ({TAG.FocalLengthIn35mmFilm: 1}, (4000, 3000), None),
        ({TAG.FocalLengthIn35mmFilm: 65535}, (4000, 3000), None),
        ({TAG.FocalLengthIn35mmFilm: "26 mm"}, (4000, 3000), None),
        ({TAG.FocalLengthIn35mmFilm: (26, 26)}, (4000, 3000), None),
        ({TAG.FocalLength: float("nan"), TAG.FocalPlaneXResolution: 100}, (4000, 3000), None),
        ({}, (4000, 3000), None),
    ],
)
def test_focal_length_of_the_camera(tags, size, focal):
    assert exif_focal(tags, size) == (focal and pytest.approx(focal, abs=0.1))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_focal_length_is_read_from_files(tmp_path, name):
    exif = TiffImagePlugin.ImageFileDirectory_v2() if name == "a.tif" else Image.Exif()
    exif[TAG.Orientation] = 6
    for details, focal in (({TAG.FocalLength: 4.25}, None), ({TAG.FocalLengthIn35mmFilm: 27}, pytest.approx(48))):
        exif[ExifTags.IFD.Exif] = details
        Image.fromarray(smooth(64, 48)).save(tmp_path / name, **{"tiffinfo" if name == "a.tif" else "exif": exif})
        picture = open_picture(tmp_path / name)
        assert (picture.shape, picture.focal) == ((64, 48, 3), focal)


@pytest.mark.parametrize("sampling", [None, Sampling(samples=2, steps=2)])
@pytest.mark.parametrize(("focal", "words"), [(1.0, "behind or inside the camera"), (1e12, "more than 100000 m away")])
def test_a_focal_length_that_cannot_be_is_refused(predictor, image, sampling, focal, words):
    with pytest.raises(InputError, match=words) as refused:
        predictor(image, BOXES, sampling, focal)
    low, high = (float(word) for word in str(refused.value).split("from ")[1].split(" (")[0].split(" to "))
    for plausible in (low, high):
        assert predictor(image, BOXES, sampling, plausible).vertices[..., 2].min() > 0.09
    assert len(predictor(image, BOXES[:0], sampling, focal)) == 0


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
