"""The released `torch.save` files: what is read from them, and what is refused."""

import pathlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mega.checkpoints import load_cvqmae, load_into, load_tokenizer, load_vqmae, save_model
from mega.model import VQMAE
from mega_common.weights_io import read_released, read_weights, write_weights
from mesh_vq_vae import MeshVQVAE
from tests.helpers.fake_files import composed
from tests.helpers.toy import toy_model, toy_tokenizer

SIZES = {"n_tokens": 6, "codebook_size": 8, "dim": 16, "encoder_depth": 1, "encoder_heads": 2}
SIZES |= {"decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture
def model() -> VQMAE:
    torch.manual_seed(0)
    return VQMAE(**SIZES)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_files_load_unchanged(model: VQMAE, tmp_path: Path, prefix: str) -> None:
    state = {prefix + k: v for k, v in model.state_dict().items()}
    extra = {"loss": np.float64(0.5), "v2v": np.float32(9), "epoch": np.int64(3), "optimizer": {"lr": 1e-3}}
    torch.save({"model": state, **extra}, tmp_path / "mega_pretrained")
    save_model(model, tmp_path / "ours.safetensors", {"model": SIZES})
    for path in (tmp_path / "mega_pretrained", tmp_path / "ours.safetensors"):
        loaded = load_into(VQMAE(**SIZES), path)
        assert not loaded.training
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)


def test_nothing_in_a_file_is_executed(model: VQMAE, tmp_path: Path) -> None:
    torch.save({"model": model.state_dict(), "config": pathlib.Path("x")}, tmp_path / "with_object")
    with pytest.raises(ValueError, match=r"with_object holds objects other than tensors and numbers"):
        read_released(tmp_path / "with_object")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_named(model: VQMAE, tmp_path: Path, share: float) -> None:
    torch.save({"model": model.state_dict()}, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "short").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"short cannot be read .*: it is (empty|a zip file .* cut short)"):
        load_into(model, tmp_path / "short")


def test_other_files_are_refused(model: VQMAE, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        load_into(model, tmp_path / "gone")
    (tmp_path / "text").write_text("no weights at all")
    with pytest.raises(ValueError, match=r"text cannot be read .* that begins with 'no weights at all'"):
        load_into(model, tmp_path / "text")
    torch.save(model.state_dict(), tmp_path / "bare")
    with pytest.raises(ValueError, match="bare is not a released checkpoint"):
        load_into(model, tmp_path / "bare")


def test_what_differs_is_named_and_nothing_is_loaded(model: VQMAE, tmp_path: Path) -> None:
    state = model.state_dict()
    state["decoder.head.weight"] = torch.zeros(9, 16)
    state["backbone.conv1.weight"] = state.pop("encoder.cls_token")
    torch.save({"model": state}, tmp_path / "other")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"other do not fit this VQMAE") as error:
        load_into(model, tmp_path / "other")
    for part in ("encoder.cls_token is missing", "backbone.conv1.weight is not in the model", "(9, 16) instead of"):
        assert part in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


SURPLUS = {"body.J_regressor": torch.zeros(24, 5), "encoder.old_head.0.weight": torch.zeros(2)}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_surplus_keys_of_a_released_file_are_reported_once_and_ignored(model, tmp_path, caplog, prefix: str) -> None:
    state = {prefix + k: v for k, v in (model.state_dict() | SURPLUS).items()}
    torch.save({"model": state}, tmp_path / "mega_pretrained")
    loaded = load_into(VQMAE(**SIZES), tmp_path / "mega_pretrained").state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value)
    (record,) = caplog.records
    words = "mega_pretrained holds more than the model, which is ignored: body.J_regressor, encoder.old_head.0.weight."
    assert record.getMessage().endswith(words)
    tokenizer = toy_tokenizer()
    torch.save({"model": tokenizer.state_dict() | SURPLUS}, tmp_path / "tokenizer")
    toy_tokenizer().load_released(tmp_path / "tokenizer")
    assert "tokenizer holds more than the model" in caplog.text


def test_surplus_keys_of_our_files_are_refused(model: VQMAE, tmp_path: Path) -> None:
    write_weights(tmp_path / "ours.safetensors", model.state_dict() | SURPLUS, "VQMAE", {"model": SIZES})
    for read in (load_vqmae, lambda path: load_into(VQMAE(**SIZES), path)):
        with pytest.raises(ValueError, match=r"body\.J_regressor is not in the model"):
            read(tmp_path / "ours.safetensors")


def test_a_deeper_model_is_not_taken_for_one_with_surplus_keys(tmp_path: Path) -> None:
    torch.save({"model": VQMAE(**SIZES | {"encoder_depth": 2}).state_dict()}, tmp_path / "deep")
    with pytest.raises(ValueError, match=r"encoder\.transformer\.1\..* is not in the model"):
        load_into(VQMAE(**SIZES), tmp_path / "deep")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory) -> Path:
    """`tokenizer`, `cvqmae` and `vqmae` as released files, and as ours with `.safetensors`."""
    folder = tmp_path_factory.mktemp("kinds")
    tokenizer = toy_tokenizer()
    cvqmae, config = toy_model(tokenizer.n_tokens)
    sizes = {k: v for k, v in config["model"].items() if k != "cond_dim"}
    prior = VQMAE(**sizes)
    tokenizer.save(folder / "tokenizer.safetensors")
    save_model(cvqmae, folder / "cvqmae.safetensors", config)
    save_model(prior, folder / "vqmae.safetensors", {"model": sizes})
    for name, model in (("tokenizer", tokenizer), ("cvqmae", cvqmae), ("vqmae", prior)):
        torch.save({"model": model.state_dict()}, folder / name)
    return folder


@pytest.mark.parametrize(
    ("wanted", "given"), [("cvqmae", "tokenizer"), ("tokenizer", "cvqmae"), ("cvqmae", "vqmae"), ("vqmae", "cvqmae")]
)
def test_one_kind_is_not_taken_for_another(every_kind: Path, wanted: str, given: str) -> None:
    names = {"tokenizer": "MeshVQVAE", "cvqmae": "CVQMAE", "vqmae": "VQMAE"}
    read_ours = {"tokenizer": MeshVQVAE.load, "cvqmae": load_cvqmae, "vqmae": load_vqmae}[wanted]
    model = read_ours(every_kind / f"{wanted}.safetensors")
    model = model if wanted == "tokenizer" else model[0]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for path in (every_kind / given, every_kind / f"{given}.safetensors"):
        released = path.suffix == ""
        words = (
            f"{given} do not fit this {names[wanted]}: .* is (missing|not in)"
            if released
            else f"holds no {names[wanted]} "
        )
        with pytest.raises(ValueError, match=words) as error:
            load_tokenizer(path, lambda: model) if wanted == "tokenizer" else load_into(model, path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"{given}\.safetensors holds no {names[wanted]} .*format: {names[given]}"):
        read_ours(every_kind / f"{given}.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_folder_is_not_a_file(model: VQMAE, tmp_path: Path) -> None:
    """A released file is a zip archive, which a browser may have unpacked into a folder of the same name."""
    (tmp_path / "mega_pretrained").mkdir()
    readers = [load_vqmae, read_released, MeshVQVAE.load, toy_tokenizer().load_released]
    for read in (*readers, lambda path: load_into(model, path), lambda path: load_tokenizer(path, toy_tokenizer)):
        with pytest.raises(ValueError, match="mega_pretrained is a folder, but a file"):
            read(tmp_path / "mega_pretrained")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_other_forms_cut_short_are_named(model: VQMAE, tmp_path: Path, share: float) -> None:
    """Ours, and the form of `torch.save` before it was a zip archive."""
    save_model(model, tmp_path / "ours", {"model": SIZES})
    torch.save({"model": model.state_dict()}, tmp_path / "old", _use_new_zipfile_serialization=False)
    for name, read in (("ours", lambda path: read_weights(path, "VQMAE")), ("old", read_released)):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: int(share * len(data))])
        with pytest.raises(ValueError, match=f"{name} cannot be read as weights "):
            read(tmp_path / name)


def test_a_tokenizer_whose_topology_is_of_another_mesh_is_named(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.template = torch.zeros(6890, 3)
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    words = r"tokenizer\.safetensors does not describe .* meshes of 162 vertices, but template has shape \(6890, 3\)"
    with pytest.raises(ValueError, match=words):
        MeshVQVAE.load(tmp_path / "tokenizer.safetensors")


def test_numbers_that_half_precision_cannot_hold_are_named(model: VQMAE, tmp_path: Path) -> None:
    model.decoder.head.bias.data[2] = 7e4
    with pytest.raises(ValueError, match=r"decoder\.head\.bias has numbers too large"):
        save_model(model, tmp_path / "half", {"model": SIZES}, torch.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "experiments"),
    [
        ("train_mesh_vqvae", ("mesh_vqvae_54",)),
        ("pretrain_mega", ("mega_pretrained",)),
        ("train_mega", ("mega_hrnet", "mega_resnet", "mega_vit", "mega_hrnet_mixture")),
    ],
)
def test_published_setups_are_exported_in_float32_and_the_shipped_one_in_float16(script: str, experiments) -> None:
    assert composed(script).export_dtype == "float16"
    for experiment in experiments:
        assert composed(script, f"experiment={experiment}").export_dtype == "float32"
