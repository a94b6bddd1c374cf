"""The optimizer of the masked transformers (MAE's recipe: He et al., CVPR 2022, appendix A)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import torch
from torch import nn


def schedule_of(trainer: L.Trainer, base_lr: float, batch_size: int, warmup_steps: float, steps: float) -> dict:
    """What `adamw_warmup_cosine` needs to know of a training's schedule.

    Args:
        trainer: tells on how many processes, and over how many batches, gradients are gathered.
        base_lr: for 256 rows a step; the rate is proportional to the rows of all processes (published; Goyal et al.,
            2017).
        batch_size: rows a batch and process.
        warmup_steps: below 1, a share of all steps.
        steps: of the whole training; below 1, as many as the trainer is going to make.
    """
    global_batch = batch_size * trainer.world_size * trainer.accumulate_grad_batches
    steps = trainer.estimated_stepping_batches if steps < 1 else steps
    warmup_steps = round(warmup_steps * steps) if warmup_steps < 1 else warmup_steps
    return {"lr": base_lr * global_batch / 256, "warmup_steps": warmup_steps, "steps": steps}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate of their own: `rate` times that of the others, from step `start` on."""

    parameters: Sequence[nn.Parameter]
    rate: float = 1.0
    start: int = 0


def adamw_warmup_cosine(
    groups: Sequence[ParameterGroup],
    lr: float,
    warmup_steps: int,
    steps: int,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.95),
) -> dict:
    """AdamW whose rates climb linearly over `warmup_steps`, then fall along half a cosine to zero at `steps`.

    Returns: what a LightningModule's `configure_optimizers` returns.
    """
    parameters = [{"params": list(group.parameters), "lr": group.rate * lr} for group in groups]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=tuple(betas), weight_decay=weight_decay)

    def share(step: int, start: int) -> float:
        """Of the rate, at a step."""
        if step < start:
            return 0.0
        if step < start + warmup_steps:
            return (step - start + 1) / warmup_steps
        done = (step - start - warmup_steps) / max(1, steps - start - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    shares = [lambda step, start=group.start: share(step, start) for group in groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shares)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
