"""The published setups on made-up files that lie where the users' own do."""

import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from mega.bodies import smplh
from mega.setup_check import check_setup
from mega.user_files import FILES
from tests.golden.golden import GOLDEN_DIR, recipe

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("model.dim=32", "model.encoder_depth=1", "model.decoder_depth=1")
TEMPLATE = GOLDEN_DIR.parent / "connections_smpl" / "template.ply"

pytestmark = pytest.mark.skipif(not TEMPLATE.is_file(), reason=f"no {TEMPLATE} for a body of SMPL's topology")


def composed(*overrides: str):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("demo", ["experiment=mega_resnet", *SMALL, *overrides])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A project folder with a fake SMPL-H, regressors as the published instructions give them, and random weights."""
    folder = tmp_path_factory.mktemp("files")
    mesh = trimesh.load(TEMPLATE, process=False)
    arrays = recipe(GOLDEN_DIR).fake_smplh(mesh.vertices, mesh.faces, 1)
    (folder / "body_models" / "smplh" / "neutral").mkdir(parents=True)
    np.savez(folder / "body_models" / "smplh" / "neutral" / "model.npz", **arrays)
    np.save(folder / "body_models" / "J_regressor_24.npy", arrays["J_regressor"])  # 52 rows, as unzipped from SMPL-H
    np.save(folder / "body_models" / "J_regressor_h36m.npy", np.full((17, 6890), 1 / 6890))
    config = composed(f"body.folder={folder / 'body_models'}")
    torch.manual_seed(0)
    tokenizer = instantiate(config.tokenizer)(body=instantiate(config.body))
    for model, path in ((tokenizer, config.tokenizer_weights), (instantiate(config.model), config.weights)):
        (folder / path).parent.mkdir(parents=True)
        state = {f"module.{k}": v for k, v in model.state_dict().items()}
        torch.save({"model": state, "epoch": 3, "loss": np.float64(0.1)}, folder / path)
    return folder


@pytest.fixture
def demo(files, tmp_path, monkeypatch, capsys):
    """demo("experiment=…") -> (exit status, stderr), in the folder of made-up files."""
    shutil.copy(ROOT / "demo_data" / "synthetic_standing.jpg", tmp_path / "person.jpg")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(files)
        line = [f"input={tmp_path / 'person.jpg'}", f"output={tmp_path / 'out'}", "max_side=128", *SMALL, *arguments]
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


def test_weights_of_another_experiment_are_named(demo) -> None:
    status, errors = demo("experiment=mega_hrnet", "weights=checkpoint/CVQMAE/mega_resnet")
    assert status == 1
    assert "mega_resnet do not fit this CVQMAE" in errors
    assert "backbone.bn1.bias is missing" in errors


def test_a_missing_file_says_where_it_comes_from(demo) -> None:
    status, errors = demo("experiment=mega_vit", "backbone.depth=1")
    assert status == 1
    assert "checkpoint/CVQMAE/mega_vit is missing: released image model, from https://zenodo.org" in errors


@pytest.mark.parametrize("path", [f.path for f in FILES if "demo" in f.needed_for and not f.experiments])
def test_the_demo_needs_what_is_said_to_be_needed(demo, files, path) -> None:
    """And nothing else: `files` holds no more than these."""
    (files / path).rename(files / "away")
    smplh._read_gender.cache_clear()
    try:
        status, errors = demo("experiment=mega_resnet")
    finally:
        (files / "away").rename(files / path)
    assert status == 1
    assert f"{path} is missing: " in errors


def test_setup_is_told(files, capsys) -> None:
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
    assert "missing  datasets/coco/coco.npz" in output
