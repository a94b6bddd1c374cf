"""The published setups on made-up files that lie where the users' own do."""

import csv
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from mega.bodies import smplh
from mega.data import smpl_images as published_images
from mega.evaluation.statistics import Results
from mega.external_files import FILES
from mega_common.weights_io import read_released
from tests.helpers.fake_files import (
    PRIOR,
    ROOT,
    SMALL,
    SMALL_VIT,
    composed,
    needs_template,
    write_data_sets,
    write_mixture,
    write_project,
)
from tools.check_setup import check_setup
from train_mega import load_start, train_mega

pytestmark = needs_template


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A project folder with what the demo needs, and the prior."""
    return write_project(tmp_path_factory.mktemp("files"), {"mega_resnet": SMALL})


@pytest.fixture
def demo(files, tmp_path, monkeypatch, capsys):
    """demo("experiment=…") -> (exit status, stderr), in the folder of made-up files."""
    shutil.copy(ROOT / "demo_data" / "synthetic_standing.jpg", tmp_path / "person.jpg")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(files)
        line = [f"input={tmp_path / 'person.jpg'}", f"output={tmp_path / 'out'}", "max_side=128", *arguments]
        monkeypatch.setattr(sys, "argv", ["demo.py", *line])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(ROOT / "demo.py", run_name="__main__")
        return end.value.code, capsys.readouterr().err

    return run


def test_demo_with_released_files(demo, tmp_path) -> None:
    status, errors = demo("experiment=mega_resnet")
    assert status == 0, errors
    with np.load(tmp_path / "out" / "person.npz") as result:
        assert result["vertices"].shape == (1, 6890, 3)
        assert result["tokens"].shape == (1, 54)
        assert result["keypoints3d"].shape == (1, 24, 3)
        assert np.isfinite(result["vertices"]).all()


@pytest.mark.parametrize("experiment", ["mega_hrnet", "mega_resnet", "mega_vit", "mega_hrnet_mixture"])
@pytest.mark.parametrize("script", ["demo", "test_mega", "train_mega"])
def test_published_setups_average_nothing(experiment, script) -> None:
    assert composed(script, f"experiment={experiment}").tta == "none"


def test_weights_say_which_model_they_are(demo, tmp_path) -> None:
    results = []
    for options in (["experiment=mega_resnet"], ["experiment=mega_hrnet", "weights=checkpoint/CVQMAE/mega_resnet"]):
        status, errors = demo(*options)
        assert status == 0, errors
        with np.load(tmp_path / "out" / "person.npz") as result:
            results.append(result["vertices"])
    np.testing.assert_array_equal(*results)


def test_a_missing_file_says_where_it_comes_from(demo) -> None:
    status, errors = demo("experiment=mega_vit")
    assert status == 1
    assert "checkpoint/CVQMAE/mega_vit is missing: released image model, from https://zenodo.org" in errors


@pytest.mark.parametrize("path", [f.path for f in FILES if "demo" in f.needed_for and not f.experiments])
def test_the_demo_needs_what_is_said_to_be_needed(demo, files, path) -> None:
    """And nothing else: `files` holds no more than these and the prior."""
    (files / path).rename(files / "away")
    smplh._read_gender.cache_clear()
    try:
        status, errors = demo("experiment=mega_resnet")
    finally:
        (files / "away").rename(files / path)
    assert status == 1
    assert f"{path} is missing: " in errors


@pytest.fixture(scope="module")
def annotated(files) -> Path:
    """The same with what training and evaluation need besides."""
    write_data_sets(files)
    return files


@pytest.fixture
def script(annotated, monkeypatch, capsys):
    """script("train_mega.py", "mode=test", …) -> stdout, in the folder of made-up files."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(annotated)
        chosen = any(argument.startswith("experiment=") for argument in arguments)
        experiment = [] if chosen else ["experiment=mega_resnet"]
        small = SMALL if name == "train_mega.py" else ()  # the others have the sizes from the weights
        monkeypatch.setattr(sys, "argv", [name, *experiment, *small, *arguments])
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as end:
            if end.code:
                pytest.fail(f"{end.code}\n{capsys.readouterr().err}")
        return capsys.readouterr().out

    return run


TRAINING = ("data.workers=0", "data.batch_size=2", "loss_points=8", "backbone_weights=random")


def test_training_and_evaluation_with_released_files(script, annotated) -> None:
    """A step from the released prior, and the errors of the released image model on a few rows."""
    script("train_mega.py", *TRAINING, "trainer.max_steps=1", "trainer.log_every_n_steps=1")
    state = torch.load(annotated / "runs" / "resnet50" / "checkpoints" / "last.ckpt", weights_only=False)
    assert state["global_step"] == 1
    (log,) = (annotated / "runs" / "resnet50").glob("csv/*/metrics.csv")
    with log.open() as file:
        (losses,) = (row for row in csv.DictReader(file) if row["train/loss"])
    assert float(losses["train/tokens"]) == pytest.approx(np.log(512), rel=0.2)
    assert all(float(losses[f"train/{name}"]) > 0 for name in ("rotation", "keypoints2d"))

    released = annotated / "checkpoint" / "CVQMAE" / "mega_resnet"
    before = released.read_bytes()
    with pytest.raises(pytest.fail.Exception, match="is a released file and is not overwritten"):
        script("train_mega.py", *TRAINING, "mode=export")
    assert released.read_bytes() == before

    # Numbers do not depend on the batch: one of 2 and one of 1, or three of 1.
    twos, ones = annotated / "twos", annotated / "ones"
    options = ("testset=3dpw", "limit=3", "testset.workers=0", "examples=0")
    script("test_mega.py", *options, "testset.batch_size=2", f"output={twos}")
    script("test_mega.py", *options, "testset.batch_size=1", f"output={ones}")
    found, again = (Results.read_csv(folder / "per_sample.csv").columns for folder in (twos, ones))
    names = [f"deterministic/mega/{name}" for name in ("PVE", "MPJPE", "PA-MPJPE", "PA-PVE")]
    for name in (*names, "deterministic/2d/keypoints"):
        np.testing.assert_allclose(found[name], again[name], atol=0.02)


def rows(log: Path, name: str) -> list[dict[str, str]]:
    """Rows of a run's CSV log that have this metric."""
    with log.open() as file:
        return [row for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize("validation", ["held out", "3dpw/3dpw_validation.npz", "3DPW/3DPW_validation.npz"])
def test_an_epoch_with_validation_and_best_weights(script, annotated, validation, tmp_path) -> None:
    """On 3DPW's validation set under either name, else on people who are held out of the training."""
    path = annotated / "datasets" / validation
    if validation != "held out":
        path.parent.mkdir(exist_ok=True)
        shutil.copy(annotated / "datasets" / "3dpw" / "3dpw_test.npz", path)
    output = tmp_path / "run"
    options = ("trainer.log_every_n_steps=1", "trainer.max_epochs=1", "data.val_share=0.4", f"output={output}")
    # All that is there to export is from this epoch: the first weights are the best ones.
    try:
        script("train_mega.py", *TRAINING, *options)
    finally:
        if validation != "held out":
            path.unlink()
    (log,) = output.glob("csv/*/metrics.csv")
    steps = rows(log, "train/loss")
    assert len(steps) == (1 if validation == "held out" else 2)  # of 2 people: 3 or 5 are trained on
    assert all(float(step[f"train/{name}"]) > 0 for step in steps for name in ("PVE", "MPJPE", "PA-MPJPE"))
    (validated,) = rows(log, "val/loss")
    terms = sum(float(validated[f"val/{name}"]) for name in ("tokens", "rotation", "keypoints2d"))
    assert float(validated["val/loss"]) == pytest.approx(terms, rel=1e-5)
    last = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name in ("loss", "pve", "pa_mpjpe"):
        best = torch.load(output / "checkpoints" / f"best_{name}.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(best[key], value) for key, value in last.items())
    weights = tmp_path / "exported.safetensors"
    script("train_mega.py", *TRAINING, *options, "mode=export", "export_from=best_pa_mpjpe", f"weights={weights}")
    assert weights.is_file()


@pytest.mark.parametrize("stage", ["", "_mixture"])
@pytest.mark.parametrize("backbone", ["hrnet", "resnet", "vit"])
def test_every_training_config_has_a_dry_run(script, annotated, backbone, stage, monkeypatch) -> None:
    if not (annotated / "datasets" / "mpii").exists():
        write_mixture(annotated)
    small = SMALL_VIT if backbone == "vit" else ()
    # The other models' way to cut a crop is not taken.
    monkeypatch.delattr(published_images, "annotated_crop" if backbone == "vit" else "patch_crop")
    # The second stage starts from what the first has learned, which is not there; the prior of both is.
    start = (f"pretrained={PRIOR}",)
    script(
        "train_mega.py", f"experiment=mega_{backbone}{stage}", *TRAINING, *small, *start, "trainer.fast_dev_run=true"
    )
    assert not (annotated / "runs" / f"mega_{backbone}{stage}").exists()


def test_the_improved_recipe_has_a_dry_run(script) -> None:
    script("train_mega.py", *TRAINING, "+recipe=improved", "trainer.fast_dev_run=true")


def test_imagenet_weights_that_cannot_be_had(annotated, tmp_path, monkeypatch) -> None:
    """Without network and file, training of ResNet-50 does not begin; one sentence says why and what to do."""

    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(annotated)
    with pytest.raises(FileNotFoundError) as end:
        train_mega.__wrapped__(composed("train_mega", "experiment=mega_resnet", f"output={tmp_path / 'run'}", *SMALL))
    for part in (str(tmp_path / "torch/hub/checkpoints/resnet50-11ad3fa6.pth"), "no network", "backbone_weights=FILE"):
        assert part in str(end.value)
    assert "\n" not in str(end.value)
    assert not (tmp_path / "run").exists()


def test_an_image_model_brings_its_backbone(files, monkeypatch) -> None:
    """Training goes on from a released image model, and needs no other weights of the backbone."""
    monkeypatch.chdir(files)
    path = "checkpoint/CVQMAE/mega_resnet"
    config = composed("train_mega", "experiment=mega_resnet", f"pretrained={path}", *SMALL)
    model = instantiate(config.model)
    load_start(model, config.pretrained, config.backbone_weights)
    state = read_released(path)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training


def test_random_bodies_of_the_released_prior(script, annotated) -> None:
    said = script("generate.py", "n=2", "steps=3")
    assert re.match(r"2 bodies in generated/, \d+ mm apart on average\n +drawn\n", said)
    assert re.search(r"^cross-entropy +nats +\d", said, re.MULTILINE)
    with np.load(annotated / "generated" / "bodies.npz") as bodies:
        assert bodies["vertices"].shape == (2, 6890, 3)
        assert bodies["tokens"].shape == (2, 54)
    assert (annotated / "generated" / "body_01.glb").is_file()


def test_check_setup_lists_what_is_missing_or_wrong(files, capsys) -> None:
    (files / "body_models" / "smplh" / "m").mkdir(exist_ok=True)
    with (files / "body_models" / "smplh" / "m" / "model.npz").open("wb") as file:
        np.savez(file, weights=np.zeros((6890, 24)))
    assert not check_setup(files)
    output = capsys.readouterr().out
    assert "ok       body_models/smplh/neutral/model.npz" in output
    assert "ok       checkpoint/MESH_VQVAE/mesh_vqvae_54" in output
    assert "wrong    body_models/smplh/m/model.npz" in output
    assert "it lacks J_regressor" in output
    resnet = output.split("experiment=")[2]
    assert "files for demo: 1 missing or wrong" in resnet  # its transformer is small
    assert "wrong    checkpoint/CVQMAE/mega_resnet" in output
    assert "missing  datasets/bedlam_animations" in output


def test_at_true_size(tmp_path) -> None:
    """Demo, random bodies, a training step and evaluation on files as large as the released ones."""
    folder = write_project(tmp_path, {"mega_hrnet": ()})
    write_data_sets(folder)
    shutil.copy(ROOT / "demo_data" / "synthetic_standing.jpg", folder / "person.jpg")
    rows = ("data.workers=0", "data.batch_size=2", "data.limit=3")
    for line in (
        ("demo.py", "input=person.jpg", "output=out", "max_side=128"),
        ("generate.py", "n=1", "steps=2"),
        ("train_mega.py", "backbone_weights=random", "trainer.max_steps=1", *rows),
        ("test_mega.py", "testset=3dpw", "testset.workers=0", "limit=2", "examples=0", "output=report"),
    ):
        script, *arguments = line
        command = [sys.executable, str(ROOT / script), "experiment=mega_hrnet", *arguments]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "PA-MPJPE" in result.stdout
    for path in ("out/person.npz", "generated/bodies.npz"):
        with np.load(folder / path) as file:
            assert file["vertices"].shape == (1, 6890, 3)
            assert np.isfinite(file["vertices"]).all()
    shutil.rmtree(folder)  # seven gigabytes, which pytest would keep
