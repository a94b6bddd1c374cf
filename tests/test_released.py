"""The released `torch.save` files: what is read from them, and what is refused."""

import pathlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mega.models import VQMAE, load_into, save_model
from mesh_vq_vae.files import read_released

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
    with pytest.raises(ValueError, match=r"short is damaged, cut short"):
        load_into(model, tmp_path / "short")


def test_other_files_are_refused(model: VQMAE, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        load_into(model, tmp_path / "gone")
    (tmp_path / "text").write_text("no weights at all")
    with pytest.raises(ValueError, match="text is damaged, cut short, or no file of weights"):
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
