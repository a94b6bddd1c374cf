"""Pre-training: the masked transformer learns a prior over bodies from tokens alone (MEGA, CVPR 2025)."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from mega.model import VQMAE, masked_cross_entropy, sample_mask
from mega.rendering import draw_body, panel
from mega.sampling import sample_unconditional
from mega.training.callbacks import log_picture
from mega.training.optimizer import ParameterGroup, adamw, schedule_of
from mega_common.distributed import draw_rows
from mesh_vq_vae import MeshVQVAE

# Shares of masked tokens at which a model is measured.
MASKED_SHARES = (0.25, 0.5, 1.0)


class VQMAETraining(L.LightningModule):
    """Cross-entropy at the masked tokens of batches {"tokens": (B, N)}.

    Args:
        model: the masked transformer.
        base_lr, batch_size, schedule, warmup_steps, steps, warmup_epochs: see `schedule_of`.
        weight_decay: AdamW's weight decay.
        label_smoothing: of the cross-entropy.
    """

    def __init__(
        self,
        model: VQMAE,
        base_lr: float,
        batch_size: int,
        schedule: str = "step",
        warmup_steps: float = 0,
        steps: float = -1,
        warmup_epochs: int = 20,
        weight_decay: float = 0.05,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.model = model
        self.schedule = {"base_lr": base_lr, "batch_size": batch_size, "schedule": schedule}
        self.schedule |= {"warmup_steps": warmup_steps, "steps": steps, "warmup_epochs": warmup_epochs}
        self.weight_decay, self.label_smoothing = weight_decay, label_smoothing

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        tokens = batch["tokens"]
        masked = draw_rows(lambda n: sample_mask(n, tokens.shape[1]), len(tokens)).to(tokens.device)
        loss = masked_cross_entropy(self.model(tokens, masked), tokens, masked, self.label_smoothing)
        self.log("train/cross_entropy", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self._evaluate(batch["tokens"], batch_idx, "val")

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self._evaluate(batch["tokens"], batch_idx, "test")

    def _evaluate(self, tokens: Tensor, batch_idx: int, split: str) -> None:
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

    def configure_optimizers(self) -> dict:
        schedule = schedule_of(self.trainer, **self.schedule)
        return adamw([ParameterGroup(list(self.model.parameters()))], **schedule, weight_decay=self.weight_decay)


class RandomBodyPanels(L.Callback):
    """Draws bodies sampled from the model at each validation, with the same noise each time.

    Args:
        folder: where the pictures are written.
        tokenizer: decodes the tokens.
        n_bodies: number of bodies.
    """

    def __init__(self, folder: Path, tokenizer: MeshVQVAE, n_bodies: int = 8):
        self.folder, self.tokenizer, self.n_bodies = Path(folder), tokenizer, n_bodies

    def on_validation_end(self, trainer, module) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        generator = torch.Generator(module.device).manual_seed(0)
        tokens = sample_unconditional(module.model, self.n_bodies, generator=generator)
        meshes = self.tokenizer.to(module.device).decode(tokens).cpu().numpy()
        faces = self.tokenizer.faces.cpu().numpy()
        row = [(draw_body(mesh, faces), "random bodies" if i == 0 else "") for i, mesh in enumerate(meshes)]
        log_picture(trainer, self.folder, panel([row]))
