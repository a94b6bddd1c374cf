"""The optimizer of the masked transformers (MAE's recipe: He et al., CVPR 2022, appendix A)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


def adamw_warmup_cosine(
    parameters: Iterable[nn.Parameter] | list[dict],
    lr: float,
    warmup_steps: int,
    steps: int,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.95),
) -> dict:
    """AdamW whose rate climbs linearly over `warmup_steps`, then falls along half a cosine to zero at `steps`.

    `parameters` may be groups {"params": …, "lr": …} with rates of their own.

    Returns: what a LightningModule's `configure_optimizers` returns.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=tuple(betas), weight_decay=weight_decay)

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
