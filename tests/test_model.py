"""The masked transformers and samplers: what must hold whatever the weights."""

import copy
import functools
import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mega import model as transformer
from mega.model import (
    CVQMAE,
    VQMAE,
    load_pretrained_vqmae,
    masked_cross_entropy,
    sample_mask,
    scheduled_visible_count,
    sinusoidal_positions,
)
from mega.optimize import optimize_for_inference
from mega.sampling import gumbel, predict_deterministic, sample, sample_unconditional
from mega.test_time_augmentation import stored_tta

N, K, C = 20, 32, 6
SIZES = {"n_tokens": N, "codebook_size": K, "dim": 32, "encoder_depth": 2, "decoder_depth": 2}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def vqmae() -> VQMAE:
    return _randomised(VQMAE(**SIZES))


@pytest.fixture(scope="module")
def cvqmae() -> CVQMAE:
    return _randomised(CVQMAE(nn.Identity(), cond_dim=C, **SIZES))


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(3, C, 4, 5, generator=gen(1))


def _randomised(model: nn.Module) -> nn.Module:
    """Weights far from the quiet initial ones, so that logits depend on all inputs."""
    generator = gen(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


# Masks


def test_mask_has_the_exact_count() -> None:
    for seed in range(20):
        masked = sample_mask(16, N, gen(seed))
        counts = masked.sum(dim=1)
        u = torch.rand((), generator=gen(seed)).item()
        assert (counts == N - int(N * (1 - math.cos(math.pi * u / 2)))).all()
    assert not torch.equal(masked, masked[:1].expand_as(masked)), "places are chosen anew for every sample"
    torch.testing.assert_close(sample_mask(16, N, gen(3)), sample_mask(16, N, gen(3)))


def test_mask_never_hides_nothing() -> None:
    assert scheduled_visible_count(N, 0.0) == 0
    assert scheduled_visible_count(N, 1.0 - 1e-9) == N - 1


def test_masked_cross_entropy_looks_at_masked_places_only() -> None:
    logits = torch.randn(2, N, K, generator=gen(), requires_grad=True)
    tokens, masked = torch.randint(K, (2, N), generator=gen()), sample_mask(2, N, gen())
    loss = masked_cross_entropy(logits, tokens, masked)
    byhand = -logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0][masked].mean()
    torch.testing.assert_close(loss, byhand)
    loss.backward()
    assert logits.grad[~masked].abs().max() == 0
    nothing = masked_cross_entropy(logits, tokens, torch.zeros_like(masked))
    nothing.backward()
    assert nothing == 0


# Models


def test_masked_tokens_are_not_seen(vqmae: VQMAE, cvqmae: CVQMAE, features: Tensor) -> None:
    tokens, masked = torch.randint(K, (3, N), generator=gen()), sample_mask(3, N, gen(4))
    others = torch.where(masked, torch.randint(K, (3, N), generator=gen(5)), tokens)
    assert torch.equal(vqmae(tokens, masked), vqmae(others, masked))
    assert torch.equal(cvqmae(features, tokens, masked), cvqmae(features, others, masked))
    seen = torch.where(masked, tokens, (tokens + 1) % K)
    assert not torch.allclose(vqmae(tokens, masked), vqmae(seen, masked))


def test_rows_may_hide_different_numbers(vqmae: VQMAE, cvqmae: CVQMAE, features: Tensor) -> None:
    """A batch gives what its rows give one by one."""
    tokens = torch.randint(K, (3, N), generator=gen())
    masked = torch.zeros(3, N, dtype=torch.bool)
    masked[0], masked[1, :7], masked[2, 3:10] = True, True, True
    alone = torch.cat([cvqmae(features[i : i + 1], tokens[i : i + 1], masked[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(cvqmae(features, tokens, masked), alone, atol=1e-4, rtol=1e-4)
    alone = torch.cat([vqmae(tokens[i : i + 1], masked[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(vqmae(tokens, masked), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [(7, 7), (5, 5), (16, 12), (1, 1)])
def test_condition_follows_the_feature_map(cvqmae: CVQMAE, grid: tuple[int, int]) -> None:
    features = torch.randn(2, C, *grid, generator=gen())
    assert cvqmae.embed_condition(features).shape == (2, grid[0] * grid[1], 32)
    prediction = predict_deterministic(cvqmae, features)
    assert prediction.logits.shape == (2, N, K)
    assert prediction.rotation.shape == (2, 3, 3)
    assert prediction.cam.shape == (2, 3)


def test_positions_by_hand() -> None:
    positions = sinusoidal_positions(5, 6)
    assert positions.shape == (5, 6)
    assert positions[3, 4].item() == pytest.approx(math.sin(3 / 10000 ** (4 / 6)), abs=1e-6)
    assert positions[3, 5].item() == pytest.approx(math.cos(3 / 10000 ** (4 / 6)), abs=1e-6)


def test_condition_dropout_takes_whole_tokens_in_training_only(features: Tensor) -> None:
    model = CVQMAE(nn.Identity(), cond_dim=C, cond_dropout=0.5, **SIZES)
    dropped = (model.train().embed_condition(features) == 0).float().mean(dim=2)
    assert set(dropped.unique().tolist()) == {0.0, 1.0}
    assert not (model.eval().embed_condition(features) == 0).any()


def test_gradients_reach_every_parameter(features: Tensor) -> None:
    model = CVQMAE(nn.Conv2d(C, C, 1), cond_dim=C, **SIZES)
    tokens, masked = torch.randint(K, (3, N), generator=gen()), sample_mask(3, N, gen(4))
    maps = model.features(features)
    rot6d, cam = model.rotcam(maps)
    (masked_cross_entropy(model(maps, tokens, masked), tokens, masked) + rot6d.sum() + cam.sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_bfloat16_is_close(features: Tensor) -> None:
    model = CVQMAE(nn.Identity(), cond_dim=C, **SIZES).eval()
    tokens, masked = torch.randint(K, (3, N), generator=gen()), sample_mask(3, N, gen(4))
    exact = masked_cross_entropy(model(features, tokens, masked), tokens, masked)
    with torch.autocast("cpu", torch.bfloat16):
        rough = masked_cross_entropy(model(features, tokens, masked), tokens, masked)
        everything = predict_deterministic(model, features)
    rough.backward()
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)
    assert everything.rotation.dtype == torch.float32


def test_untrained_body_stands_upright(features: Tensor) -> None:
    from mega.geometry import rot6d_to_matrix

    rot6d, cam = CVQMAE(nn.Identity(), cond_dim=C, **SIZES).eval().rotcam(features)
    rotation = rot6d_to_matrix(rot6d)
    torch.testing.assert_close(rotation, torch.diag(torch.tensor([1.0, -1, -1])).expand(3, 3, 3), atol=0.1, rtol=0)
    assert (cam[:, 0] > 0.5).all()


def test_features_normalise_as_the_backbone_asks() -> None:
    """Bit for bit the published (x / 255 - mean) / std in float32, for either type of images."""
    backbone = nn.Conv2d(3, C, 1)
    backbone.mean, backbone.std, backbone.out_channels = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), C
    model = CVQMAE(backbone, **SIZES).eval()
    seen = []
    backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=gen())
    model.features(images), model.features(images.float())
    pixels = images.permute(0, 2, 3, 1).numpy().astype(np.float32)
    expected = (pixels / 255 - np.float32(backbone.mean)) / np.float32(backbone.std)
    assert all(np.array_equal(x.permute(0, 2, 3, 1).numpy(), expected) for x in seen)
    assert len(seen) == 2
    assert not any(key in ("mean", "std") for key in model.state_dict())


def test_arguments_of_the_models() -> None:
    own = set(inspect.signature(VQMAE).parameters)
    assert own >= set(SIZES)
    assert set(inspect.signature(CVQMAE).parameters) - own == {
        "backbone", "cond_dim", "cond_dropout", "rotcam_dropout", "cam_range"
    }  # fmt: skip
    with pytest.raises(TypeError, match="dmi"):
        VQMAE(dmi=3)
    with pytest.raises(ValueError, match=r"model\.init=best is not known; choose from published, scaled"):
        VQMAE(**SIZES, init="best")


# Test-time augmentation


def test_stored_tta_of_either_version() -> None:
    assert stored_tta({}) == "none"
    assert stored_tta({"average": "flip+shift"}) == stored_tta({"tta": "flip_shift"}) == "flip_shift"
    assert stored_tta({"average": "flip"}) == "flip"


# What is left out, and what is less precise


@pytest.mark.parametrize("alike", [True, False])
def test_logits_of_masked_places_alone(vqmae: VQMAE, cvqmae: CVQMAE, features: Tensor, alike: bool) -> None:
    tokens, masked = torch.randint(K, (3, N), generator=gen()), sample_mask(3, N, gen(4))
    if not alike:
        masked[1] = True
    assert 0 < (~masked).sum() < masked.numel()
    condition = cvqmae.embed_condition(features)
    pairs = [
        (cvqmae.predict(condition, tokens, masked, only_masked=True), cvqmae.predict(condition, tokens, masked)),
        (vqmae(tokens, masked, only_masked=True), vqmae(tokens, masked)),
    ]
    for some, everything in pairs:
        torch.testing.assert_close(some[masked], everything[masked], atol=1e-4, rtol=1e-4)
        assert some[~masked].isnan().all()
        assert not everything.isnan().any()


def test_last_block_is_timms_block(features: Tensor, monkeypatch) -> None:
    """Same logits and gradients as of the whole block, whose other rows are thrown away."""
    model = _randomised(CVQMAE(nn.Identity(), cond_dim=C, **SIZES)).double()
    tokens, masked = torch.randint(K, (3, N), generator=gen()), sample_mask(3, N, gen(4))

    def logits_and_gradients() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logits = model(features.double(), tokens, masked)
        masked_cross_entropy(logits, tokens, masked).backward()
        return logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    ours = logits_and_gradients()
    monkeypatch.setattr(transformer, "block_at", lambda block, x, wanted: block(x)[:, -wanted.shape[1] :])
    timms = logits_and_gradients()
    assert ours[1]["decoder.transformer.1.attn.qkv.weight"].abs().max() > 0
    torch.testing.assert_close(ours, timms)


def test_samples_do_not_depend_on_what_is_left_out(cvqmae: CVQMAE, features: Tensor, monkeypatch) -> None:
    quick = sample(cvqmae, features, 4, 6, generator=gen())

    monkeypatch.setattr(cvqmae, "predict", lambda *state, only_masked=False: CVQMAE.predict(cvqmae, *state))
    assert torch.equal(sample(cvqmae, features, 4, 6, generator=gen()), quick)


def test_a_frozen_model_gives_the_same_and_needs_no_encoder_for_it(features: Tensor) -> None:
    model = _randomised(CVQMAE(nn.Identity(), cond_dim=C, **SIZES))
    before, keys = predict_deterministic(model, features).logits, list(model.state_dict())
    optimize_for_inference(model)
    model.encoder.transformer.register_forward_hook(lambda *_: pytest.fail("cls went through the encoder again"))
    assert torch.equal(predict_deterministic(model, features).logits, before)
    assert list(model.state_dict()) == keys


def test_bfloat16_weights_give_nearly_the_same(features: Tensor) -> None:
    torch.manual_seed(0)
    exact = CVQMAE(nn.Conv2d(C, C, 1), cond_dim=C, **SIZES).eval()
    nn.init.normal_(exact.decoder.head.weight, generator=gen(3))
    rough = optimize_for_inference(copy.deepcopy(exact), "bf16")
    assert rough.state_dict().keys() == exact.state_dict().keys()
    assert rough.backbone.weight.dtype == rough.decoder.transformer[1].attn.qkv.weight.dtype == torch.bfloat16
    maps = rough.features(features)
    torch.testing.assert_close(maps, exact.features(features), rtol=0.02, atol=0.02)
    for ours, theirs in zip(rough.rotcam(maps), exact.rotcam(maps), strict=True):
        assert torch.equal(ours, theirs), "the heads stay exact"

    tokens, masked = torch.randint(K, (3, N), generator=gen()), sample_mask(3, N, gen(4))
    for state in ((tokens, masked), (tokens, torch.ones_like(masked))):
        ours, theirs = rough(maps, *state), exact(maps, *state)
        assert ours.dtype == torch.float32
        assert 0 < (ours - theirs).abs().max() < 0.05 * theirs.std()
        assert (ours.argmax(dim=-1) == theirs.argmax(dim=-1)).float().mean() > 0.9  # of 60 tokens


def test_compiled_blocks_give_the_same(features: Tensor, monkeypatch) -> None:
    """Traced for real, as one graph each; the C++ that torch would make of it is left out, since it takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    model = _randomised(CVQMAE(nn.Conv2d(C, C, 1), cond_dim=C, **SIZES))
    exact = sample(model, model.features(features), 4, 6, generator=gen())
    keys = list(model.state_dict())
    optimize_for_inference(model, compile=True)
    assert list(model.state_dict()) == keys
    assert torch.equal(sample(model, model.features(features), 4, 6, generator=gen()), exact)


def test_unknown_precision_is_refused(cvqmae: CVQMAE) -> None:
    with pytest.raises(ValueError, match="choose from fp32, bf16"):
        optimize_for_inference(cvqmae, "fp17")


# Starting from the pre-trained prior


def test_pretrained_prior_is_taken_over() -> None:
    prior, model = VQMAE(**SIZES), CVQMAE(nn.Conv2d(3, C, 1), cond_dim=C, **SIZES)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    new = load_pretrained_vqmae(model, prior.state_dict())
    for key, value in model.state_dict().items():
        expected = before[key] if key in new else prior.state_dict()[key]
        assert torch.equal(value, expected), key
    assert "backbone.weight" in new
    assert "decoder.cond_emb.weight" in new
    assert set(new) == before.keys() - prior.state_dict().keys()


def test_unfit_prior_is_refused() -> None:
    model = CVQMAE(nn.Identity(), cond_dim=C, **SIZES)
    state = VQMAE(**SIZES).state_dict()
    with pytest.raises(ValueError, match=r"decoder\.head\.bias is missing"):
        load_pretrained_vqmae(model, {key: state[key] for key in state if key != "decoder.head.bias"})
    with pytest.raises(ValueError, match="extra is not in the model"):
        load_pretrained_vqmae(model, state | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"decoder\.head\.bias has shape \(33,\) instead of \(32,\)"):
        load_pretrained_vqmae(model, state | {"decoder.head.bias": torch.zeros(K + 1)})
    with pytest.raises(ValueError, match="is missing"):
        load_pretrained_vqmae(model, {})


# Samplers


class FixedNoise:
    """Gumbel noise for B pictures and Q samples that can be asked for a part of them."""

    def __init__(self, batch: int, samples: int, steps: int):
        draw = gumbel(gen(9))
        self.ids = draw("ids", 0, (steps, batch, samples, N, K))
        self.confidence = draw("confidence", 0, (steps, batch, samples, N))

    def part(self, rows: slice = slice(None), columns: slice = slice(None)):
        return lambda what, step, shape: getattr(self, what)[step, rows, columns].reshape(shape)


@pytest.mark.parametrize("rule", ["default", "published"])
def test_together_is_as_one_by_one(cvqmae: CVQMAE, features: Tensor, rule: str) -> None:
    """Samples and pictures do not depend on what else is in the batch."""
    noise = FixedNoise(3, 4, 5)
    together = sample(cvqmae, features, 4, 5, rule=rule, noise=noise.part())
    assert together.shape == (3, 4, N)
    assert len(together.flatten(0, 1).unique(dim=0)) > 6, "the draws should differ for this test to say anything"
    split = sample(cvqmae, features, 4, 5, rule=rule, noise=noise.part(), max_batch=5)
    assert torch.equal(split, together)
    for b in range(3):
        for q in range(4):
            part = noise.part(slice(b, b + 1), slice(q, q + 1))
            alone = sample(cvqmae, features[b : b + 1], 1, 5, rule=rule, noise=part)
            assert torch.equal(alone[0, 0], together[b, q])


@pytest.mark.parametrize("rule", ["default", "published"])
@pytest.mark.parametrize("steps", [1, 2, 5, 3 * N])
def test_what_stays_masked(cvqmae: CVQMAE, vqmae: VQMAE, features: Tensor, rule: str, steps: int) -> None:
    states = []
    tokens = sample(cvqmae, features, 2, steps, generator=gen(), rule=rule, watch=lambda *state: states.append(state))
    counts = [masked.sum(dim=-1) for _, masked in states]
    assert len(states) == steps
    assert (counts[-1] == (1 if rule == "published" else 0)).all()
    assert all((after <= before).all() for before, after in itertools.pairwise(counts))
    # What is visible stays as it is.
    for (before, was_masked), (after, _) in itertools.pairwise(states):
        assert torch.equal(before[~was_masked], after[~was_masked])
    assert tokens.min() >= 0
    assert tokens.max() < K
    assert sample_unconditional(vqmae, 3, steps, generator=gen(), rule=rule).shape == (3, N)


def test_same_seed_same_samples(cvqmae: CVQMAE, vqmae: VQMAE, features: Tensor) -> None:
    once, again, other = (sample(cvqmae, features, 3, generator=gen(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    once, again, other = (sample_unconditional(vqmae, 5, generator=gen(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_samplers_leave_the_global_random_state_alone(cvqmae: CVQMAE, features: Tensor) -> None:
    before = torch.get_rng_state()
    sample(cvqmae, features, 3, generator=gen(1))
    sample_mask(3, N, gen())
    assert torch.equal(before, torch.get_rng_state())


def test_one_cold_step_is_the_deterministic_prediction(cvqmae: CVQMAE, features: Tensor) -> None:
    prediction = predict_deterministic(cvqmae, features)
    tokens = sample(cvqmae, features, n_samples=2, steps=1)
    assert torch.equal(tokens, prediction.tokens[:, None].expand(-1, 2, -1))
    anything = torch.randint(K, (3, N), generator=gen())
    logits = cvqmae(features, anything, torch.ones(3, N, dtype=torch.bool))
    torch.testing.assert_close(logits, prediction.logits)


def test_backbone_and_first_step_run_once(features: Tensor) -> None:
    """However many samples: a pass over the pictures' own rows, then steps - 1 passes over all rows."""
    model = _randomised(CVQMAE(nn.Identity(), cond_dim=C, **SIZES))
    rows = []
    model.decoder.head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    sample(model, features, n_samples=6, steps=4, generator=gen())
    assert rows == [3, 18, 18, 18]


def test_unknown_rule_is_refused(cvqmae: CVQMAE, features: Tensor) -> None:
    with pytest.raises(ValueError, match="There is no rule"):
        sample(cvqmae, features, rule="paper")
