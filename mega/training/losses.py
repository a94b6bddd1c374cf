"""Cross-entropy against a codebook whose codes are not all equally wrong."""

from __future__ import annotations

import torch
from torch import Tensor


def neighbour_targets(codebook: Tensor, softness: float) -> Tensor:
    """Target distribution (K, K) of each true code: it spreads to codes that mean nearly the same.

    Row i is softmax_j(-|e_i - e_j|² / (softness * s)) with s the mean squared distance to a nearest neighbour;
    softness 0 gives the one-hot targets of the published loss.
    """
    distances = torch.cdist(codebook, codebook).square()
    if softness == 0:
        return torch.eye(len(codebook), device=codebook.device)
    apart = distances + torch.diag(torch.full((len(codebook),), torch.inf, device=codebook.device))
    return torch.softmax(-distances / (softness * apart.amin(1).mean()), dim=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """Mean cross-entropy at the hidden places of logits (B, N, K) against distributions (B, N, K); zero if none is."""
    if not hidden.any():
        return logits.sum() * 0.0
    losses = -(targets * logits.log_softmax(-1)).sum(-1)  # (B, N)
    return losses[hidden].mean()
