"""Which tokens the model may see: `hidden` (B, N) bool is True where a token is masked."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def scheduled_visible_count(n_tokens: int, u: float) -> int:
    """How many of `n_tokens` stay visible at u in [0, 1): a share 1 - cos(pi/2 u), rounded down; never all of them."""
    return min(int(n_tokens * (1 - math.cos(math.pi / 2 * u))), n_tokens - 1)


def draw_hidden(batch: int, n_tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw a training mask: one share for the whole batch, the places anew for every sample.

    Returns:
        (B, N) bool on the generator's device, every row with exactly the same number of hidden tokens. (The published
        mask counts the cls place too and so leaves one hidden token a row out of the loss; this one does not.)
    """
    device = generator.device if generator is not None else None
    u = torch.rand((), generator=generator, device=device).item()
    rank = torch.rand(batch, n_tokens, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    return rank >= scheduled_visible_count(n_tokens, u)


def visible_places(hidden: Tensor) -> Tensor:
    """Indices (B, n_visible) of the visible tokens in ascending order; all rows must have the same number of them."""
    n_visible = hidden.shape[1] - int(hidden[0].sum())
    return hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :n_visible]


def hidden_places(hidden: Tensor) -> Tensor:
    """Indices (B, n_hidden) of the hidden tokens in ascending order; all rows must have the same number of them."""
    return visible_places(~hidden)


def masked_cross_entropy(logits: Tensor, tokens: Tensor, hidden: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the hidden places only; zero (with a gradient of zero) when none is hidden.

    Args:
        logits: (B, N, K).
        tokens: (B, N) int64, the truth.
        hidden: (B, N) bool.
    """
    if not hidden.any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits[hidden].float(), tokens[hidden], label_smoothing=label_smoothing)
