"""CVQMAE computes what the published image model computes, its backbone being the identity."""

from pathlib import Path

import torch

from mega.geometry import rot6d_to_matrix
from tests.golden.golden import assert_close, assert_same, assert_state_keys, fill, golden_cases, load
from tests.golden.models import assert_order_fits, build_cvqmae, published_mask


@golden_cases("cvqmae")
@torch.no_grad()
def test_same_numbers(path: Path) -> None:
    arrays, config = load(path)
    model = build_cvqmae(config["model"])
    assert_state_keys(model, arrays["state_keys"])
    fill(model, path)
    tokens, features = arrays["tokens"], model.backbone(arrays["cond"])

    mask_of = {"fixed1": torch.ones_like(tokens, dtype=torch.bool), "partial": arrays["visible_mask"] == 0}
    for name, masked in mask_of.items():
        assert_close(model(features, tokens, masked), arrays[f"logits_{name}"], name=f"logits_{name}")
        rot6d, cam = model.rotcam(features)
        assert_close(rot6d, arrays[f"rot6d_{name}"], name=f"rot6d_{name}")
        assert_close(cam, arrays[f"cam_{name}"], name=f"cam_{name}")
        if f"backward_indexes_{name}" in arrays:
            order = arrays[f"backward_indexes_{name}"]
            assert_order_fits(masked, order)
            assert_same(published_mask(masked, order), arrays[f"mask_{name}"], name=f"mask_{name}")
        else:  # without the order, all that is known is that one masked token a row is called visible
            mask = arrays[f"mask_{name}"] == 1
            assert_same(mask.sum(dim=1), masked.sum(dim=1) - 1, name=f"mask_{name}")
            assert not (mask & ~masked).any()
    assert_close(rot6d_to_matrix(arrays["rot6d_partial"]), arrays["rotmat"], rtol=1e-5, name="rotmat")
    assert tokens.min() >= 0
    assert tokens.max() < model.codebook_size
    arrays.assert_all_read()
