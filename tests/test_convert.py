"""Released files and what the converter makes of them predict the same."""

import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import mega
from mega.checkpoints import load_cvqmae, load_into, load_vqmae
from mega.model import VQMAE
from mega.predictor import People, Predictor, Sampling
from tests.helpers.fake_files import PRIOR, ROOT, SMALL, SMALL_VIT, needs_template, write_project

SIZES = {"mega_hrnet": SMALL, "mega_resnet": SMALL, "mega_vit": (*SMALL, *SMALL_VIT)}
FILES = ["cvqmae.safetensors", "tokenizer.safetensors", "vqmae.safetensors"]

pytestmark = needs_template


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"), SIZES)


@pytest.fixture
def convert(project: Path, monkeypatch, capsys):
    """convert("experiment=…") -> (exit status, what was printed, errors), in the folder of made-up files."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(project)
        monkeypatch.setattr(sys, "argv", ["convert_weights.py", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "tools" / "convert_weights.py"), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


def predict(predictor: Predictor) -> People:
    image = cv2.imread(str(ROOT / "demo_data" / "synthetic_standing.jpg"))[..., ::-1]
    height, width = image.shape[:2]
    box = np.array([[0.2 * width, 0.1 * height, 0.7 * width, 0.9 * height]])
    return predictor(np.ascontiguousarray(image), box, Sampling(samples=2, steps=3))


@pytest.mark.parametrize("experiment", SIZES)
def test_both_forms_predict_the_same(convert, project: Path, tmp_path: Path, experiment: str) -> None:
    status, printed, errors = convert(f"weights={experiment}", f"output={tmp_path / 'ours'}")
    assert status == 0, errors
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == FILES
    assert printed.count("wrote ") == len(FILES)
    converted = mega.load(tmp_path / "ours")
    assert (converted.tta, converted.crop.patch) == ("none", experiment == "mega_vit")
    released, ours = predict(mega.load(experiment, root=project)), predict(converted)
    for name in ("vertices", "tokens", "keypoints3d", "samples", "faces"):
        assert np.array_equal(getattr(released, name), getattr(ours, name)), name
    assert released.vertices.shape == (1, 6890, 3)
    assert np.isfinite(released.vertices).all()
    assert len(np.unique(released.tokens)) > 5, "the tokens should differ for this test to say anything"
    prior, config = load_vqmae(tmp_path / "ours" / "vqmae.safetensors")
    state = load_into(VQMAE(**config["model"]), project / PRIOR).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in prior.state_dict().items())


def test_half_precision_without_the_prior(convert, project: Path, tmp_path: Path) -> None:
    """By default the folder is called as the released file is."""
    status, printed, errors = convert("experiment=mega_resnet", "dtype=float16", "pretrained=gone")
    assert status == 0, errors
    folder = project / "checkpoint" / "mega_resnet"
    assert "left out checkpoint/mega_resnet/vqmae.safetensors: there is no gone" in printed
    assert sorted(path.name for path in folder.iterdir()) == FILES[:2]
    whole = project / "checkpoint" / "CVQMAE" / "mega_resnet"
    assert (folder / FILES[0]).stat().st_size < 0.55 * whole.stat().st_size
    assert np.isfinite(predict(mega.load(folder)).vertices).all()


def test_numbers_too_large_for_half_precision_are_refused(convert, project: Path, tmp_path: Path) -> None:
    content = torch.load(project / "checkpoint" / "CVQMAE" / "mega_resnet", weights_only=False)
    content["model"]["module.backbone.1.running_var"][3] = 1e5
    torch.save(content, tmp_path / "large")
    status, _, errors = convert(f"weights={tmp_path / 'large'}", f"output={tmp_path / 'out'}", "dtype=float16")
    assert status == 1
    assert f"{tmp_path / 'large'}: backbone.1.running_var has numbers too large for torch.float16" in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "weights=mega_hrnet, mega_resnet, mega_vit"),
        (["weights=mega_resnet", "dtype=int8"], "dtype=int8 must be float32 or float16"),
        (["weights=gone/mega_resnet"], "gone/mega_resnet is missing"),
        (["weights=checkpoint/VQMAE/mega_pretrained"], "mega_pretrained do not fit this CVQMAE"),
        (["weights=checkpoint/MESH_VQVAE/mesh_vqvae_54"], "mesh_vqvae_54 do not fit this CVQMAE"),
        (["weights=mega_resnet", "pretrained=checkpoint/CVQMAE/mega_hrnet"], "mega_hrnet do not fit this VQMAE"),
        (["weights=mega_resnet", "tokenizer_weights=checkpoint/VQMAE/mega_pretrained"], "do not fit this MeshVQVAE"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(convert, tmp_path: Path, arguments, words) -> None:
    status, printed, errors = convert(*arguments, f"output={tmp_path / 'out'}")
    assert status == 1
    assert words in errors
    assert len(errors.strip().splitlines()) == 1
    assert not printed
    assert not (tmp_path / "out").exists()


def test_without_the_body_a_released_model_says_what_is_missing(project: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").symlink_to(project / "checkpoint")
    with pytest.raises(FileNotFoundError, match=r"smplh/neutral/model\.npz is missing: SMPL-H, neutral, from"):
        mega.load("mega_resnet", root=tmp_path)


def test_a_released_file_is_recognised_by_its_tensors(project: Path, tmp_path: Path) -> None:
    """Under any name; sizes, the kind of crop and the unit of the camera follow from what it holds."""
    (tmp_path / "renamed").symlink_to(project / "checkpoint" / "CVQMAE" / "mega_vit")
    model, config = load_cvqmae(tmp_path / "renamed")
    assert (config["backbone"], config["backbone_args"]["columns_cut"]) == ("vit_h", 32)
    assert (config["crop"]["size"], config["crop"]["patch"], model.decoder.cam_range) == (256, True, 1.0)
    assert (model.n_tokens, model.codebook_size, config["model"]["dim"]) == (54, 512, 32)
    assert load_cvqmae(tmp_path / "renamed", cam_range=2.0)[0].decoder.cam_range == 2.0
