"""The sampler of random bodies when some tokens are given: they stay, and the schedule is that of the others."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mega.model import VQMAE
from mega.sampling import sample_unconditional
from tests.helpers.toy import N_CODES


def toy_prior(n_tokens: int) -> VQMAE:
    torch.manual_seed(0)
    size = {"n_tokens": n_tokens, "codebook_size": N_CODES, "dim": 32, "encoder_depth": 1, "encoder_heads": 2}
    model = VQMAE(**size, decoder_depth=1, decoder_heads=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("rule", ["default", "published"])
@pytest.mark.parametrize("n_masked", [1, 2, 7, 12])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_given_tokens_never_change(rule: str, n_masked: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, N_CODES, (12,), generator=generator)
    masked = torch.randperm(12, generator=generator) < n_masked
    states = []

    def watch(now: Tensor, still_masked: Tensor) -> None:
        states.append((now[0].clone(), still_masked[0].clone()))

    model = toy_prior(12)
    drawn = sample_unconditional(model, 5, steps, 1.0, generator, rule, watch=watch, given=(tokens, masked))
    assert len(states) == steps
    for now, still_masked in states:
        assert (now[:, ~masked] == tokens[~masked]).all()
        assert not still_masked[:, ~masked].any()
    # The schedule is that of the masked tokens: after step k a share cos(pi k / 2n) of them, always fewer than before.
    left = n_masked
    for step, (_, still_masked) in enumerate(states, start=1):
        left = max(1, min(left - 1, int(n_masked * np.cos(np.pi / 2 * step / steps))))
        last = step == steps and rule == "default"
        assert (still_masked.sum(dim=1) == (0 if last else left)).all()
    assert torch.equal(states[-1][0], drawn)


def test_nothing_given_is_unconditional() -> None:
    model = toy_prior(12)
    state = torch.zeros(12, dtype=torch.int64), torch.ones(12, dtype=torch.bool)
    free, none_given = (
        sample_unconditional(model, 4, generator=torch.Generator().manual_seed(2), given=given)
        for given in (None, state)
    )
    assert torch.equal(free, none_given)


def test_nothing_to_draw_is_refused() -> None:
    given = torch.zeros(12, dtype=torch.int64), torch.zeros(12, dtype=torch.bool)
    with pytest.raises(ValueError, match="no token is masked"):
        sample_unconditional(toy_prior(12), 1, given=given)
