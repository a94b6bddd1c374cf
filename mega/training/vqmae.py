"""Pre-training: the masked transformer learns a prior over bodies from tokens alone (MEGA, CVPR 2025).

`AdamWConfig`, the optimizer and its learning-rate schedules, is also that of the image model's training.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from mega.model import VQMAE, masked_cross_entropy, sample_mask
from mega.training.checkpoints import LightningInternals
from mega_common.distributed import draw_rows

MASKED_SHARES = (0.25, 0.5, 1.0)  # of the tokens, at which a model is measured


class ParameterGroup(NamedTuple):
    """Parameters that learn at `rate` times the learning rate, from step `start` on."""

    parameters: list[nn.Parameter]
    rate: float = 1.0
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW with a schedule of the learning rate (MAE's recipe: He et al., CVPR 2022, appendix A).

    The rate depends on the number of the step only, so that a resumed training continues exactly.
    """

    base_lr: float  # of 256 rows per step; the rate is proportional to the rows of all processes (Goyal et al., 2017)
    batch_size: int  # rows per batch and process
    schedule: Literal["step", "published"] = "step"  # `stepwise_factor`, or `published_factor` of the epoch
    warmup_steps: float = 0  # of "step"; below 1, a share of all steps
    steps: float = -1  # of "step", the length of the training; below 1, the steps that the trainer is going to make
    warmup_epochs: int = 20  # of "published"
    weight_decay: float = 0.05

    def optimizer(self, trainer: L.Trainer, groups: Sequence[ParameterGroup]) -> dict:
        """The result of `configure_optimizers`. Raises ValueError for "published" without a number of epochs."""
        lr = self.base_lr * self.batch_size * trainer.world_size * trainer.accumulate_grad_batches / 256
        parameters = [{"params": group.parameters, "lr": group.rate * lr} for group in groups]
        optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=self.weight_decay)
        factor = self._factor(trainer)
        factors = [lambda step, start=group.start: factor(step, start) if step >= start else 0.0 for group in groups]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, trainer: L.Trainer) -> Callable[[int, int], float]:
        """(step, first step of a parameter group), both from 0 -> factor of the group's learning rate."""
        planned_steps = LightningInternals(trainer).planned_steps
        if self.schedule == "published":
            epochs = trainer.max_epochs
            if epochs is None or epochs < 1:
                raise ValueError("training.schedule=published counts epochs: give trainer.max_epochs")
            planned_steps()  # sets `trainer.num_training_batches`
            per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            return lambda step, start: published_factor(step // per_epoch, self.warmup_epochs, epochs)
        steps = planned_steps() if self.steps < 1 else self.steps
        warmup_steps = round(self.warmup_steps * steps) if self.warmup_steps < 1 else self.warmup_steps
        return lambda step, start: stepwise_factor(step - start, warmup_steps, steps - start)


def published_factor(epoch: int, warmup_epochs: int, epochs: int) -> float:
    """The lesser of a linear warm-up and a half-cosine decay, constant within an epoch."""
    return min((epoch + 1) / warmup_epochs, 0.5 * (1 + math.cos(math.pi * epoch / epochs)))


def stepwise_factor(step: int, warmup_steps: float, steps: float) -> float:
    """Linear over `warmup_steps`, then along half a cosine to zero at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True, kw_only=True)
class VQMAETrainingConfig(AdamWConfig):
    """How a prior is trained."""

    label_smoothing: float = 0.0  # of the cross-entropy


class VQMAETraining(L.LightningModule):
    """Cross-entropy at the masked tokens of batches {"tokens": (B, N)}."""

    def __init__(self, model: VQMAE, config: VQMAETrainingConfig):
        super().__init__()
        self.model, self.config = model, config

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        tokens = batch["tokens"]
        masked = draw_rows(lambda n: sample_mask(n, tokens.shape[1]), len(tokens)).to(tokens.device)
        loss = masked_cross_entropy(self.model(tokens, masked), tokens, masked, self.config.label_smoothing)
        self.log("train/cross_entropy", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: dict, batch_idx: int, split: str = "val") -> None:
        tokens = batch["tokens"]
        # The same masks every time, so that two validations can be compared.
        order = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(batch_idx)).argsort(1).to(tokens)
        for share in MASKED_SHARES:
            masked = order < round(share * tokens.shape[1])
            logits = self.model(tokens, masked)
            suffix = f"{round(100 * share)}_percent_masked"
            metrics = {
                f"{split}/cross_entropy_{suffix}": masked_cross_entropy(logits, tokens, masked),
                f"{split}/token_accuracy_{suffix}": (logits.argmax(-1) == tokens)[masked].float().mean(),
            }
            self.log_dict(metrics, batch_size=len(tokens), sync_dist=True)

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx, "test")

    def configure_optimizers(self) -> dict:
        return self.config.optimizer(self.trainer, [ParameterGroup(list(self.model.parameters()))])
