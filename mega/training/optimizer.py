"""The optimizer of the masked transformers (MAE's recipe: He et al., CVPR 2022, appendix A), learning-rate schedules,
and the cross-entropy of tokens with soft targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor, nn

from mega.training.checkpoints import LightningInternals

SCHEDULES = ("published", "step")
# (step, from 0; first step of a parameter group) -> factor of the learning rate
Factor = Callable[[int, int], float]


def schedule_of(
    trainer: L.Trainer,
    base_lr: float,
    batch_size: int,
    schedule: str = "step",
    warmup_steps: float = 0,
    steps: float = -1,
    warmup_epochs: int = 20,
) -> dict:
    """The learning rate of a training and its schedule: arguments of `adamw`.

    Args:
        trainer: gives the number of processes and of batches over which gradients are accumulated.
        base_lr: for 256 rows per step; the rate is proportional to the rows of all processes (published; Goyal et al.,
            2017).
        batch_size: rows per batch and process.
        schedule: "published" changes the rate once per epoch (`published_factor`), "step" at every step
            (`stepwise_factor`). Both depend on the step number only, so that a resumed training continues exactly.
        warmup_steps: of "step"; below 1, a share of all steps.
        steps: of "step", the length of the training; below 1, the steps that the trainer is going to make.
        warmup_epochs: of "published".

    Raises ValueError for an unknown schedule, and for "published" without a number of epochs.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"training.schedule={schedule} is not known; choose from {', '.join(SCHEDULES)}")
    lr = base_lr * batch_size * trainer.world_size * trainer.accumulate_grad_batches / 256
    if schedule == "published":
        if (trainer.max_epochs or -1) < 1:
            raise ValueError("training.schedule=published counts epochs: give trainer.max_epochs")
        _planned_steps(trainer)
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        return {"lr": lr, "factor": published_factor(warmup_epochs, trainer.max_epochs, per_epoch)}
    steps = _planned_steps(trainer) if steps < 1 else steps
    warmup_steps = round(warmup_steps * steps) if warmup_steps < 1 else warmup_steps
    return {"lr": lr, "factor": stepwise_factor(warmup_steps, steps)}


def _planned_steps(trainer: L.Trainer) -> float:
    steps = trainer.estimated_stepping_batches
    LightningInternals(trainer).forget_training_loader()
    return steps


def published_factor(warmup_epochs: int, epochs: int, steps_per_epoch: int) -> Factor:
    """The published schedule: the lesser of a linear warm-up and a half-cosine decay, constant within an epoch."""

    def factor(step: int, start: int) -> float:
        if step < start:
            return 0.0
        epoch = step // steps_per_epoch
        return min((epoch + 1) / warmup_epochs, 0.5 * (1 + math.cos(math.pi * epoch / epochs)))

    return factor


def stepwise_factor(warmup_steps: int, steps: int) -> Factor:
    """Linear over `warmup_steps` from a group's start, then along half a cosine to zero at `steps`."""

    def factor(step: int, start: int) -> float:
        if step < start:
            return 0.0
        if step < start + warmup_steps:
            return (step - start + 1) / warmup_steps
        done = (step - start - warmup_steps) / max(1, steps - start - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn at `rate` times the learning rate, from step `start` on."""

    parameters: Sequence[nn.Parameter]
    rate: float = 1.0
    start: int = 0


def adamw(
    groups: Sequence[ParameterGroup],
    lr: float,
    factor: Factor,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.95),
) -> dict:
    """AdamW whose learning rates are multiplied by `factor` at each step: the result of `configure_optimizers`."""
    parameters = [{"params": list(group.parameters), "lr": group.rate * lr} for group in groups]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=tuple(betas), weight_decay=weight_decay)
    factors = [lambda step, start=group.start: factor(step, start) for group in groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def neighbour_targets(codebook: Tensor, label_smoothing_temperature: float) -> Tensor:
    """Target distributions (K, K) of the cross-entropy: row i spreads from code i to codes close to it.

    Row i is softmax_j(-|e_i - e_j|² / (temperature * s)) with s the mean squared distance to a nearest neighbour;
    temperature 0 gives the one-hot targets of the published loss.
    """
    distances = torch.cdist(codebook, codebook).square()
    if label_smoothing_temperature == 0:
        return torch.eye(len(codebook), device=codebook.device)
    others = distances + torch.diag(torch.full((len(codebook),), torch.inf, device=codebook.device))
    return torch.softmax(-distances / (label_smoothing_temperature * others.amin(1).mean()), dim=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, N, K) against distributions (B, N, K) where `masked` (B, N); zero if nowhere."""
    if not masked.any():
        return logits.sum() * 0.0
    losses = -(targets * logits.log_softmax(-1)).sum(-1)  # (B, N)
    return losses[masked].mean()
