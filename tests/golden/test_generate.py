"""The samplers take the published decisions, step by step, when they follow the published rule."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mega.geometry import rot6d_to_matrix
from mega.sampling import predict_deterministic, sample, sample_unconditional
from tests.golden.golden import Arrays, assert_close, assert_same, assert_state_keys, fill, golden_cases, load
from tests.golden.models import build_cvqmae, build_vqmae

# Runs a sampler: (steps, temperature, noise, watch) -> tokens
Sampler = Callable[..., Tensor]


@golden_cases("generate_trace")
@torch.no_grad()
def test_unconditional(path: Path) -> None:
    arrays, config = load(path)
    model = build_vqmae(config["vqmae"])
    assert_state_keys(model, arrays["state_keys_vqmae"])
    fill(model, path)

    def logits(tokens: Tensor, masked: Tensor) -> Tensor:
        return model(tokens, masked)

    def run(batch: int, **options) -> Tensor:
        return sample_unconditional(model, batch, rule="published", **options)

    _check_traces("vqmae", arrays, run, logits)
    assert_all_read_of(arrays, "vqmae")


@golden_cases("generate_trace")
@torch.no_grad()
def test_conditional(path: Path) -> None:
    arrays, config = load(path)
    model = build_cvqmae(config["cvqmae"])
    assert_state_keys(model, arrays["state_keys_cvqmae"])
    fill(model, path)
    features = model.backbone(arrays["cvqmae_cond"])

    def logits(tokens: Tensor, masked: Tensor) -> Tensor:
        return model(features, tokens, masked)

    def run(batch: int, **options) -> Tensor:
        assert batch == len(features)
        return sample(model, features, n_samples=1, rule="published", **options)[:, 0]

    _check_traces("cvqmae", arrays, run, logits)
    prediction = predict_deterministic(model, features)
    for steps in _step_counts("cvqmae", arrays):
        assert_close(model.rotcam(features)[0], arrays[f"cvqmae_{steps}_rot6d"], name=f"cvqmae_{steps}_rot6d")
        assert_close(prediction.rotation, rot6d_to_matrix(arrays[f"cvqmae_{steps}_rot6d"]), name="rotation")
        assert_close(prediction.cam, arrays[f"cvqmae_{steps}_cam"], name=f"cvqmae_{steps}_cam")
    assert_all_read_of(arrays, "cvqmae")


def _step_counts(model: str, arrays: Arrays) -> list[int]:
    names = (name.split("_") for name in arrays if name.startswith(f"{model}_") and name.endswith("_tokens"))
    return [int(parts[1]) for parts in names if parts[1].isdigit()]


def _check_traces(model: str, arrays: Arrays, run: Sampler, logits: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Every trace of a model: the plain ones at temperature 0, and the one with injected noise."""
    assert _step_counts(model, arrays)
    for steps in _step_counts(model, arrays):
        trace = arrays[f"{model}_{steps}_steps"]  # (n, B, N), masked places written as 0
        _, after = _check_trace(trace, arrays[f"{model}_{steps}_tokens"], run, temperature=0.0, noise=None)
        _check_margins(arrays[f"{model}_{steps}_robust"], after, logits)

    ids, confidence = arrays[f"{model}_noisy_gumbel_ids"], arrays[f"{model}_noisy_gumbel_conf"]

    def injected(what: str, step: int, shape: torch.Size) -> Tensor:
        return (ids if what == "ids" else confidence)[step].reshape(shape)

    trace, tokens = arrays[f"{model}_noisy_steps"], arrays[f"{model}_noisy_tokens"]
    _check_trace(trace, tokens, run, temperature=arrays[f"{model}_noisy_temp"].item(), noise=injected)
    # The last step's tau is zero, so its noise has no effect: all that can be said is that it looks like Gumbel noise.
    for noise in (ids, confidence):
        assert torch.isfinite(noise).all()
        assert -5 < noise.min() < noise.max() < 30


def _check_trace(trace: Tensor, tokens: Tensor, run: Sampler, **options) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    steps, batch, n_tokens = trace.shape
    after = []  # (tokens, masked) of each step, (B, N)

    def watch(*state: Tensor) -> None:
        after.append(tuple(x.reshape(batch, n_tokens) for x in state))

    result = run(batch, steps=steps, watch=watch, **options)
    assert_same(result, tokens, name="tokens")
    assert_same(torch.stack([state[0] for state in after]), trace, name="steps")
    assert (after[-1][1].sum(dim=1) == 1).all(), "the published rule leaves one token masked"
    return result, after


def _check_margins(expected: Tensor, after: list[tuple[Tensor, Tensor]], logits: Callable) -> None:
    """The trace's margins (2,): the smallest lead of a chosen token over the next, and the smallest gap of confidences.

    How the second was taken is not written down; it is no larger than the gap between any two masked places.
    """
    tokens, masked = torch.zeros_like(after[0][0]), torch.ones_like(after[0][1])
    lead, gap = torch.inf, torch.inf
    for state in after:
        now = logits(tokens, masked)
        best = now.topk(2, dim=-1).values
        lead = min(lead, (best[..., 0] - best[..., 1]).min().item())
        for row, mask in zip(best[..., 0], masked, strict=True):
            gap = min([gap, *row[mask].sort().values.diff().tolist()])
        tokens, masked = state
    assert abs(expected[0].item() - lead) < 1e-5
    assert 0 <= expected[1].item() < gap + 1e-5


def assert_all_read_of(arrays: Arrays, model: str) -> None:
    """Nothing of this model was left out (the file holds the other's traces too)."""
    for name in arrays.keys() - {n for n in arrays if n.startswith(f"{model}_") or n.endswith(f"_{model}")}:
        arrays[name]
    arrays.assert_all_read()
