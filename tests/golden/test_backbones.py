"""The backbones compute the published features under the released names."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mega.backbones import HRNetW48, ResNet50, ViT
from tests.golden.golden import Arrays, assert_close, assert_state_keys, fill, golden_cases, load


def _vit(config: dict) -> ViT:
    sizes = {"dim": config["embed_dim"], "depth": config["depth"], "heads": config["num_heads"]}
    cut = 32 if "columns" in config.get("input", "") else 0
    return ViT(tuple(config["position_grid"]), columns_cut=cut, **sizes)


def _check(path: Path, build: Callable[[dict], nn.Module]) -> None:
    arrays, config = load(path)
    model = build(config)
    assert_state_keys(model, arrays["state_keys"])
    fill(model, path)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.mean, model.std))
    with torch.no_grad():
        features = model(((arrays["image"].permute(2, 0, 1) / 255 - mean) / std)[None])
    _compare(features, arrays)
    assert features.shape[1] == model.out_channels
    arrays.assert_all_read()


def _compare(features: torch.Tensor, arrays: Arrays) -> None:
    """With the whole output where the file holds it, else with the places it names; mean and spread in either case."""
    assert list(features.shape) == arrays["out_shape"].tolist()
    spread = arrays["out_std"].item()
    assert abs(features.double().mean() - arrays["out_mean"]) < 1e-4 * spread
    assert abs(features.double().std() - arrays["out_std"]) < 1e-4 * spread
    if "out" in arrays:
        assert_close(features, arrays["out"], name="out")
    else:
        assert_close(features.flatten()[arrays["out_idx"]], arrays["out_val"], name="out_val")


@golden_cases("hrnet_w48")
def test_hrnet_w48(path: Path) -> None:
    _check(path, lambda config: HRNetW48())


@golden_cases("resnet50")
def test_resnet50(path: Path) -> None:
    _check(path, lambda config: ResNet50())


@golden_cases("vit")
def test_vit(path: Path) -> None:
    _check(path, _vit)
