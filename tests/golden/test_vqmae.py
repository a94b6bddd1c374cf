"""VQMAE computes what the published pre-training model computes."""

from pathlib import Path

import torch

from mega.model import masked_cross_entropy
from tests.golden.golden import assert_close, assert_same, assert_state_keys, fill, golden_cases, load
from tests.golden.models import assert_order_fits, build_vqmae, published_mask


@golden_cases("vqmae")
@torch.no_grad()
def test_same_numbers(path: Path) -> None:
    arrays, config = load(path)
    model = build_vqmae(config["model"])
    assert_state_keys(model, arrays["state_keys"])
    fill(model, path)
    tokens = arrays["tokens"]

    counts = arrays["visible_masks"].sum(dim=2)
    assert_same(counts, counts[:, :1].expand_as(counts), name="visible_masks: the same number in every row")
    mask_of = {str(i): visible == 0 for i, visible in enumerate(arrays["visible_masks"])}
    mask_of["fixed1"] = torch.ones_like(tokens, dtype=torch.bool)
    for name, masked in mask_of.items():
        if f"logits_{name}" not in arrays:
            continue
        assert_close(model(tokens, masked), arrays[f"logits_{name}"], name=f"logits_{name}")
        order = arrays[f"backward_indexes_{name}"]
        assert_order_fits(masked, order)
        assert_same(published_mask(masked, order), arrays[f"mask_{name}"], name=f"mask_{name}")
        if f"cls_feature_{name}" in arrays:
            cls = model.encoder(tokens, masked)[:, 0]
            assert_close(cls, arrays[f"cls_feature_{name}"], name=f"cls_feature_{name}")
        if f"shuffle_noise_{name}" in arrays:
            # How much the published logits differ with the order of the visible tokens: rounding, as it should be.
            noise = arrays[f"shuffle_noise_{name}"]
            assert 0 <= noise < 1e-4 * arrays[f"logits_{name}"].std()
        if f"masked_ce_{name}" in arrays:
            loss = masked_cross_entropy(arrays[f"logits_{name}"], tokens, arrays[f"mask_{name}"] == 1)
            assert_close(loss, arrays[f"masked_ce_{name}"], rtol=1e-5, name=f"masked_ce_{name}")
    arrays.assert_all_read()
