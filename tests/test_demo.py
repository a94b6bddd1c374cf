"""demo.py from its command line, on real files, with a small made-up model: what comes out, what goes wrong and how."""

import json
import os
import re
import resource
import runpy
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file

from mega import detectors
from mega.checkpoints import MODEL_FILE, TOKENIZER_FILE, load_cvqmae, save_model
from mega.photos import open_picture

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def run(toy_weights, tmp_path, photos, monkeypatch, capsys):
    """demo.py with a command line: run("mode=…") -> (exit status, stdout, stderr). Results go to tmp_path/"out"."""

    def run(*arguments: str) -> tuple[int, str, str]:
        line = [f"input={photos}", f"output={tmp_path / 'out'}", f"weights={toy_weights}", "max_side=128", *arguments]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["demo.py", *line])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(ROOT / "demo.py", run_name="__main__")
        output = capsys.readouterr()
        return end.value.code, output.out, output.err

    return run


def write_photo(path: Path, size=(96, 64), **options) -> Path:
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def written(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def results(name: str, people: int = 1, mesh: str = "glb") -> set[str]:
    return {f"{name}_overlay.png", f"{name}.npz", *(f"{name}_p{p}.{mesh}" for p in range(people))}


def test_a_folder_becomes_overlays_meshes_arrays_and_a_table(run, photos, tmp_path):
    write_photo(photos / "one.jpg")
    write_photo(photos / "two.png", size=(64, 96))
    (photos / "boxes.json").write_text(json.dumps({"two.png": [[5, 5, 30, 90], [30, 10, 60, 95]]}))
    status, out, err = run()
    assert status == 0, err
    assert written(tmp_path / "out") == results("one") | results("two", people=2)
    with np.load(tmp_path / "out/two.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {
            *("vertices", "faces", "boxes", "focal", "principal_point", "tokens", "keypoints3d", "keypoints2d")
        }
        assert arrays["vertices"].shape == (2, 162, 3)
        assert arrays["vertices"].dtype == np.float32
        assert arrays["focal"].shape == ()
        assert arrays["focal"] == pytest.approx(1000 / 224 * 96)
        np.testing.assert_array_equal(arrays["boxes"], [[5, 5, 30, 90], [30, 10, 60, 95]])
        np.testing.assert_array_equal(arrays["principal_point"], [32, 48])
        points = arrays["keypoints3d"]
        projected = points[..., :2] / points[..., 2:] * arrays["focal"] + arrays["principal_point"]
        np.testing.assert_allclose(projected, arrays["keypoints2d"], atol=1e-2)
    table = [line for line in out.splitlines() if line.startswith(("picture", "one.jpg", "two.png", "all 2"))]
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1
    for stage in ("read", "detect", "predict", "draw", "write"):
        assert stage in table[0]


def test_stochastic_mode_adds_samples_and_depends_on_the_seed_alone(run, photos, tmp_path):
    write_photo(photos / "a.jpg")
    arrays = {}
    options = ("mode=stochastic", "samples=3", "steps=3", "temperature=20")
    for key, seed, others in (("first", 3, False), ("again", 3, True), ("other", 4, False)):
        if others:
            write_photo(photos / "0_earlier.jpg")
        status, _, err = run(*options, f"seed={seed}", f"output={tmp_path / key}")
        assert status == 0, err
        arrays[key] = dict(np.load(tmp_path / key / "a.npz"))
    assert arrays["first"]["samples"].shape == (1, 3, 162, 3)
    np.testing.assert_array_equal(arrays["first"]["samples"], arrays["again"]["samples"])
    assert (arrays["first"]["samples"] != arrays["other"]["samples"]).any()
    spread = np.sqrt(arrays["first"]["samples"].var(axis=1).sum(axis=-1))
    np.testing.assert_allclose(arrays["first"]["uncertainty"], spread, atol=1e-5)
    plain = np.asarray(Image.open(tmp_path / "first/a_overlay.png"))
    assert plain.shape[1] > 3.5 * 128  # input, in place, from the side and the heat map with its scale


def test_test_time_augmentation_is_chosen_by_the_weights_or_the_command_line(run, photos, tmp_path, toy_weights):
    write_photo(photos / "a.jpg")
    asking = shutil.copytree(toy_weights, tmp_path / "asking")
    model, config = load_cvqmae(asking / MODEL_FILE)
    save_model(model, asking / MODEL_FILE, config | {"average": "flip"})  # its name in earlier files
    lines = {"silent": (), "none": ("tta=none",), "flip": ("tta=flip",)}
    lines |= {"asking": (f"weights={asking}",), "refused": (f"weights={asking}", "tta=none")}
    meshes = {}
    for key, arguments in lines.items():
        status, _, err = run(*arguments, f"output={tmp_path / key}")
        assert status == 0, err
        meshes[key] = np.load(tmp_path / key / "a.npz")["vertices"]
    np.testing.assert_array_equal(meshes["silent"], meshes["none"])
    np.testing.assert_array_equal(meshes["refused"], meshes["none"])
    np.testing.assert_array_equal(meshes["asking"], meshes["flip"])
    assert np.abs(meshes["flip"] - meshes["none"]).max() > 0.01


def test_given_focal_and_obj(run, photos, tmp_path):
    write_photo(photos / "a.jpg")
    status, _, err = run("focal=123", "export=obj", "detector=whole_image")
    assert status == 0, err
    assert written(tmp_path / "out") == results("a", mesh="obj")
    assert np.load(tmp_path / "out/a.npz")["focal"] == 123


def camera_exif(millimetres: int) -> Image.Exif:
    """EXIF data of a lens that is `millimetres` long on 35 mm film."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = millimetres
    return exif


def test_the_focal_length_of_the_camera_is_used_and_said(run, photos, tmp_path):
    write_photo(photos / "none.jpg")
    write_photo(photos / "phone.jpg", exif=camera_exif(27))
    for option, focal, source in (("null", 72, "EXIF"), ("default", 428.6, "default"), ("90", 90, "given")):
        status, out, err = run(f"focal={option}")
        assert status == 0, err
        assert np.load(tmp_path / "out/phone.npz")["focal"] == pytest.approx(focal, abs=0.1)
        row = next(line for line in out.splitlines() if line.startswith("phone.jpg"))
        assert f" {focal:.0f} px, {source} " in row
    assert np.load(tmp_path / "out/none.npz")["focal"] == 90


def test_a_focal_length_that_puts_people_into_the_camera_is_refused_and_the_others_are_done(run, photos, tmp_path):
    write_photo(photos / "good.jpg", size=(60, 60))
    write_photo(photos / "near.jpg", exif=camera_exif(8))
    (photos / "boxes.json").write_text(json.dumps({"near.jpg": [[-500, -500, 600, 600]], "good.jpg": [[0, 0, 60, 60]]}))
    status, _, err = run()
    assert status == 1
    assert written(tmp_path / "out") == results("good")
    assert "1 of 2 pictures failed" in err
    assert re.search(r"near.jpg: A focal length of 21.33 px puts people behind or inside the camera: give focal=", err)
    assert run("focal=default")[0] == 0
    status, _, err = run("focal=0.5")
    assert status == 1
    assert "2 of 2 pictures failed" in err


def test_bfloat16_gives_nearly_the_same_people(run, photos, tmp_path):
    write_photo(photos / "a.jpg")
    people = {}
    for precision in ("fp32", "bf16"):
        status, _, err = run(f"precision={precision}", f"output={tmp_path / precision}", "detector=whole_image")
        assert status == 0, err
        people[precision] = np.load(tmp_path / precision / "a.npz")
    assert (people["fp32"]["tokens"] == people["bf16"]["tokens"]).mean() > 0.8
    difference = np.abs(people["fp32"]["keypoints2d"] - people["bf16"]["keypoints2d"]).max()
    assert 0 < difference < 5  # px


def test_compile_without_a_compiler_is_one_sentence(run, photos, monkeypatch):
    write_photo(photos / "a.jpg")
    monkeypatch.setenv("CXX", "nowhere-g++")
    status, out, err = run("compile=true", "device=cpu")
    assert status == 1
    assert "compile=true needs a C++ compiler, and there is no nowhere-g++ here" in err
    assert len((out + err).strip().splitlines()) == 1


def test_one_file_and_a_pattern(run, photos, tmp_path):
    for name in ("a.jpg", "b.jpg", "c.png"):
        write_photo(photos / name)
    assert run(f"input={photos / 'a.jpg'}")[0] == 0
    assert written(tmp_path / "out") == results("a")
    assert run(f"input={photos}/*.jpg")[0] == 0
    assert written(tmp_path / "out") == results("a") | results("b")


@pytest.mark.parametrize("name", ["2024", "Jose\u0301 日本 [1] a*b, 'q' = 100% #5 {x}=$HOME (1)", " ~ "])
def test_any_name_will_do_for_every_file(run, photos, tmp_path, toy_weights, name, caplog):
    (tmp_path / name).mkdir()
    write_photo(tmp_path / name / f"{name}.jpg")
    write_photo(tmp_path / name / "other.jpg")
    (tmp_path / name / "clip.mp4").touch()
    shutil.copytree(toy_weights, tmp_path / name / "weights")
    composed = unicodedata.normalize("NFC", name)
    (tmp_path / name / f"{name}.json").write_text(json.dumps({f"{composed}.jpg": [[1, 2, 30, 40]]}))
    words = [f"output={composed}/{name}", f"boxes={composed}/{name}.json", f"weights={composed}/weights"]
    status, _, err = run(f"input={composed}", *words)
    assert status == 0, err
    assert written(tmp_path / name / name) == results(name) | results("other")
    np.testing.assert_array_equal(np.load(tmp_path / name / name / f"{name}.npz")["boxes"], [[1, 2, 30, 40]])
    assert "clip.mp4 (a video" in caplog.text
    assert "no boxes for 1 of 2 pictures" in caplog.text
    status, _, err = run(f"input={composed}/{composed}.jpg", f"output={name}")
    assert status == 0, err
    assert results(name) < written(tmp_path / name)
    caplog.clear()
    assert run(f"input={composed}", f"output={tmp_path / 'again'}")[0] == 0
    assert written(tmp_path / "again") == results(name) | results("other"), "results are not taken for input"


def test_pictures_of_the_same_name_do_not_overwrite_each_other(run, photos, tmp_path):
    write_photo(photos / "a.jpg")
    write_photo(photos / "a.png", size=(64, 96))
    assert run()[0] == 0
    assert written(tmp_path / "out") == results("a_jpg") | results("a_png")


def test_a_picture_without_people_is_drawn_without_them(run, photos, tmp_path):
    write_photo(photos / "empty.jpg")
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"empty.jpg": []}')
    assert run(f"boxes={boxes}")[0] == 0
    assert written(tmp_path / "out") == results("empty", people=0)
    assert np.load(tmp_path / "out/empty.npz")["vertices"].shape == (0, 162, 3)


def test_torchvision_without_its_weights_says_so_and_takes_the_whole_picture(run, photos, tmp_path, monkeypatch):
    from torchvision.models import detection

    def no_network(**_):
        raise OSError("no network")

    monkeypatch.setattr(detection, "fasterrcnn_mobilenet_v3_large_fpn", no_network)
    messages = []
    monkeypatch.setattr(detectors.log, "warning", lambda text, *values: messages.append(text % values))
    write_photo(photos / "a.jpg")
    assert run("detector=torchvision")[0] == 0
    assert written(tmp_path / "out") == results("a")
    assert "could not be fetched" in messages[0]
    assert "boxes=FILE" in messages[0]


def test_torchvision_finds_people_in_a_reduced_picture(photos, monkeypatch):
    from torchvision.models import detection

    seen = []

    class Network:
        def eval(self):
            return self

        def __call__(self, pictures):
            seen.extend(tuple(picture.shape) for picture in pictures)
            found = torch.tensor([[9.5, 19.5, 29.5, 49.5]])
            return [{"labels": torch.tensor([1]), "scores": torch.tensor([0.9]), "boxes": found}]

    monkeypatch.setattr(detection, "fasterrcnn_mobilenet_v3_large_fpn", lambda **_: Network())
    path = write_photo(photos / "a.jpg", size=(4000, 800))
    detector = detectors.TorchvisionDetector(max_side=500)
    np.testing.assert_array_equal(detector(path, open_picture(path)).boxes, [[79.5, 159.5, 239.5, 399.5]])
    assert seen == [(3, 100, 500)]


def test_bad_pictures_are_named_and_the_others_are_done(run, photos, tmp_path):
    write_photo(photos / "good.jpg")
    write_photo(photos / "grey.png")
    Image.open(photos / "grey.png").convert("L").save(photos / "grey.png")
    (photos / "text.jpg").write_text("not a picture")
    (photos / "empty.png").touch()
    whole = write_photo(photos / "truncated.jpg", size=(200, 200)).read_bytes()
    (photos / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    whole = write_photo(photos / "cut.png", size=(200, 200)).read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    write_photo(photos / "pixel.png", size=(1, 1))
    (photos / "dangling.jpg").symlink_to(photos / "nowhere.jpg")
    status, out, err = run()
    assert status == 1
    assert written(tmp_path / "out") == results("good") | results("grey")
    assert "5 of 7 pictures failed" in err
    for name in ("text.jpg", "empty.png", "truncated.jpg", "cut.png", "pixel.png"):
        lines = [line for line in err.split("failed:")[1].splitlines() if name in line]
        assert len(lines) == 1, name
    assert "Traceback" not in err
    assert "good.jpg" in out


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([200, 200, 300, 300], "lies outside the picture"),
        ([-50, 0, -1, 40], "lies outside the picture"),
        ([10, 10, 10, 40], "has no area"),
        ([40, 10, 20, 40], "has no area"),
        ([1, 2, 3], "is not four numbers"),
        (["a", 0, 1, 2], "is not four numbers"),
        ([0, 0, 1e999, 5], "is not four numbers"),
        (7, "is not four numbers"),
    ],
)
def test_bad_boxes_are_named_and_the_other_pictures_are_done(run, photos, tmp_path, box, reason):
    write_photo(photos / "bad.jpg")
    write_photo(photos / "good.jpg")
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"bad.jpg": [[0, 0, 40, 40], box], "good.jpg": [[-30, -5, 40, 100]]}))
    status, _, err = run(f"boxes={boxes}")
    assert status == 1
    assert "1 of 2 pictures failed" in err
    assert "bad.jpg" in err
    assert reason in err
    assert written(tmp_path / "out") == results("good")


def test_a_misspelt_name_in_the_boxes_file_is_reported(run, photos, tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(detectors.log, "warning", lambda text, *values: messages.append(text % values))
    write_photo(photos / "a.jpg")
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"A.jpg": [[0, 0, 9, 9]]}')
    assert run(f"boxes={boxes}")[0] == 0
    assert messages == [
        f"{boxes} has boxes for pictures that are not in the input: A.jpg.",
        f"{boxes} has no boxes for 1 of 1 pictures; one person is expected in each of them: {photos / 'a.jpg'}.",
    ]


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\xff"])
def test_a_bad_boxes_file_is_one_sentence(run, photos, tmp_path, content):
    write_photo(photos / "a.jpg")
    boxes = tmp_path / "boxes.json"
    boxes.write_bytes(content.encode("latin-1"))
    status, out, err = run(f"boxes={boxes}")
    assert status == 1
    assert str(boxes) in err
    assert len((out + err).strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("input={tmp}/nowhere", "does not exist"),
        ("input={tmp}/none/*.jpg", "No picture matches"),
        ("input={tmp}/hollow", "holds no pictures"),
        ("boxes={tmp}/nowhere.json", "nowhere.json"),
        ("weights={tmp}/nowhere", "nowhere is missing. Weights are a folder with tokenizer.safetensors"),
        ("output={tmp}/file", "cannot be written"),
        ("output={tmp}/photos", "holds the input"),
        ("mode=guess", "mode=guess must be deterministic or stochastic"),
        ("decode=best", "decode=best"),
        ("tta=twice", "tta=twice must be none, flip, shift, flip_shift or null"),
        ("export=ply", "export=ply"),
        ("focal=-3", "focal=-3"),
        ("samples=0", "samples=0"),
        ("temperature=-1", "temperature=-1"),
        ("device=warp", "device=warp"),
        ("precision=fp17", "precision=fp17 must be fp32, bf16 or auto"),
        ("compile=maybe", "compile=maybe must be true or false"),
    ],
)
def test_what_stops_the_whole_run_is_one_sentence(run, photos, tmp_path, argument, words):
    (tmp_path / "hollow").mkdir()
    (tmp_path / "file").touch()
    write_photo(photos / "a.jpg")
    write_photo(photos / "b.jpg")
    status, out, err = run(argument.format(tmp=tmp_path))
    assert status == 1
    assert words in err
    assert out == ""
    assert len(err.strip().splitlines()) == 1


def wrong_weights(case: str, folder: Path) -> str:
    """Spoil a weights folder; the words that the message must have."""
    model_file, tokenizer_file = folder / MODEL_FILE, folder / TOKENIZER_FILE
    model, config = load_cvqmae(model_file)
    if case == "missing model":
        model_file.unlink()
        return str(model_file)
    if case == "damaged tokenizer":
        tokenizer_file.write_bytes(tokenizer_file.read_bytes()[:100])
        return str(tokenizer_file)
    if case == "empty model":
        model_file.touch()
        model_file.write_bytes(b"")
        return str(model_file)
    if case == "swapped":
        shutil.copy(tokenizer_file, model_file)
        return str(model_file)
    if case == "no config":
        save_file(load_file(model_file), model_file)
        return str(model_file)
    if case == "missing tensor":
        del model.decoder.mask_token
        save_model(model, model_file, config)
        return "decoder.mask_token is missing"
    if case == "another size":
        model.decoder.head = torch.nn.Linear(32, 16)
        save_model(model, model_file, config)
        return "decoder.head.weight has shape (16, 32) instead of (32, 32)"
    if case == "unknown tta":
        save_model(model, model_file, config | {"tta": "twice"})
        return "tta=twice is not one of none, flip, shift, flip_shift"
    assert case == "unknown backbone"
    save_model(model, model_file, config | {"backbone": "eyeballs"})
    return "eyeballs"


@pytest.mark.parametrize(
    "case",
    [
        "missing model",
        "damaged tokenizer",
        "empty model",
        "swapped",
        "no config",
        "missing tensor",
        "another size",
        "unknown tta",
        "unknown backbone",
    ],
)
def test_wrong_weights_are_one_sentence(run, photos, tmp_path, toy_weights, case):
    write_photo(photos / "a.jpg")
    folder = shutil.copytree(toy_weights, tmp_path / "weights")
    words = wrong_weights(case, folder)
    status, out, err = run(f"weights={folder}")
    assert status == 1
    assert words in err
    assert str(folder) in err
    assert len((out + err).strip().splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_output_is_one_sentence(run, photos, tmp_path):
    write_photo(photos / "a.jpg")
    (tmp_path / "out").mkdir(mode=0o500)
    status, _, err = run()
    assert status == 1
    assert f"The output folder {tmp_path / 'out'} cannot be written" in err


@pytest.mark.slow
def test_a_full_disk_leaves_whole_results_or_none(photos, toy_weights, tmp_path):
    """The process may write no file above a size that one picture's results exceed and the other's do not."""
    write_photo(photos / "large.jpg", size=(400, 300))
    Image.new("RGB", (400, 300), "grey").save(photos / "small.jpg")
    limit = 400_000
    process = subprocess.run(
        [sys.executable, ROOT / "demo.py", f"input={photos}", f"output={tmp_path}/out", f"weights={toy_weights}"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 1
    assert "1 of 2 pictures failed" in process.stderr
    assert "large.jpg: The results cannot be written" in process.stderr
    assert written(tmp_path / "out") == results("small")


@pytest.mark.slow
def test_the_script_itself_without_anny(photos, toy_weights, tmp_path):
    """In a process of its own: no file but the results appears, and the body model is never imported."""
    write_photo(photos / "a photo (1).jpg")
    guard = "import sys, runpy; sys.modules['anny'] = None; sys.modules['mega.bodies'] = None; sys.argv = sys.argv[1:]"
    code = f"{guard}; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [f"input={photos}", f"output={tmp_path}/out", f"weights={toy_weights}", "mode=stochastic", "samples=2"]
    process = subprocess.run(
        [sys.executable, "-c", code, ROOT / "demo.py", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr
    assert written(tmp_path / "out") == results("a photo (1)")
    assert written(tmp_path) == {"photos", "out"}
