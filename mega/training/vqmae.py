"""Pre-training: the masked transformer learns what bodies look like, from tokens alone (MEGA, CVPR 2025)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from mega.checkpoints import load_into, load_vqmae, save_model
from mega.config import build
from mega.model import VQMAE, masked_cross_entropy, sample_mask
from mega.rendering import draw_body, panel
from mega.sampling import sample_unconditional
from mega.tokenizer import load_tokenizer
from mega.training.callbacks import log_picture
from mega.training.optimizer import ParameterGroup, adamw, schedule_of
from mega.training.trainer import begin, export_dtype, fit, load_run_weights, model_arguments, test
from mega_common.distributed import draw_rows
from mega_common.weights_io import is_released, weights_format
from mesh_vq_vae import MeshVQVAE

# Shares of tokens hidden at which a model is measured: little, half, everything.
HIDDEN_SHARES = (0.25, 0.5, 1.0)


class VQMAETraining(L.LightningModule):
    """Cross-entropy on the hidden tokens of batches {"tokens": (B, N)}.

    Args:
        model: the masked transformer.
        base_lr, batch_size, schedule, warmup_steps, steps, warmup_epochs: see `schedule_of`.
        weight_decay: of AdamW.
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
        hidden = draw_rows(lambda n: sample_mask(n, tokens.shape[1]), len(tokens)).to(tokens.device)
        loss = masked_cross_entropy(self.model(tokens, hidden), tokens, hidden, self.label_smoothing)
        self.log("train/cross_entropy", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self._evaluate(batch["tokens"], batch_idx, "val")

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self._evaluate(batch["tokens"], batch_idx, "test")

    def _evaluate(self, tokens: Tensor, batch_idx: int, split: str) -> None:
        # The same masks every time, so that two validations can be compared.
        order = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(batch_idx)).argsort(1).to(tokens)
        for share in HIDDEN_SHARES:
            hidden = order < round(share * tokens.shape[1])
            logits = self.model(tokens, hidden)
            accuracy = (logits.argmax(-1) == tokens)[hidden].float().mean()
            name = f"{split}/{{}}_{round(100 * share)}_percent_hidden"
            values = {
                name.format("cross_entropy"): masked_cross_entropy(logits, tokens, hidden),
                name.format("token_accuracy"): accuracy,
            }
            self.log_dict(values, batch_size=len(tokens), sync_dist=True)

    def configure_optimizers(self) -> dict:
        schedule = schedule_of(self.trainer, **self.schedule)
        return adamw([ParameterGroup(list(self.model.parameters()))], **schedule, weight_decay=self.weight_decay)


class RandomBodyPanels(L.Callback):
    """Bodies drawn from the model at each validation: the same noise each time.

    Args:
        folder: where the pictures go.
        tokenizer: decodes them.
        n_bodies: how many.
    """

    def __init__(self, folder: Path, tokenizer: MeshVQVAE, n_bodies: int = 8):
        self.folder, self.tokenizer, self.n_bodies = Path(folder), tokenizer, n_bodies

    def on_validation_end(self, trainer, module) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        device = module.device
        generator = torch.Generator(device).manual_seed(0)
        tokens = sample_unconditional(module.model, self.n_bodies, generator=generator)
        meshes = self.tokenizer.to(device).decode(tokens).cpu().numpy()
        faces = self.tokenizer.faces.cpu().numpy()
        row = [(draw_body(mesh, faces), "random bodies" if i == 0 else "") for i, mesh in enumerate(meshes)]
        log_picture(trainer, self.folder, panel([row]))


def run_pretraining(config: DictConfig) -> None:
    """mode=train fits (and continues), mode=test measures `weights`, mode=export writes `weights` from the run."""
    begin(config)
    body = build(config.body)
    tokenizer = load_tokenizer(config.tokenizer_weights, partial(instantiate(config.tokenizer), body=body))
    module = instantiate(config.training)(model=_model(config, tokenizer))
    if config.mode == "export":
        _export(config, module, tokenizer)
        return
    data = instantiate(config.data)(body=body, tokenizer=tokenizer)
    if config.mode == "test":
        test(config, module, data)
    else:
        fit(config, module, data, callbacks=[RandomBodyPanels(Path(config.output) / "panels", tokenizer)])


def _model(config: DictConfig, tokenizer: MeshVQVAE) -> VQMAE:
    """A new model, or the one to test: a file of ours says itself what it is, the config what a released one is."""
    if config.mode == "test" and weights_format(config.weights) is not None:
        return load_vqmae(config.weights)[0]
    model = instantiate(config.model, n_tokens=tokenizer.n_tokens, codebook_size=tokenizer.codebook_size)
    return load_into(model, config.weights) if config.mode == "test" else model


def _export(config: DictConfig, module: VQMAETraining, tokenizer: MeshVQVAE) -> None:
    if is_released(config.weights):
        raise ValueError(
            f"{config.weights} is a released file and is not overwritten: say where to write, weights=FILE."
        )
    load_run_weights(module, config.output, config.export_from)
    Path(config.weights).parent.mkdir(parents=True, exist_ok=True)
    description = {"model": model_arguments(config.model, tokenizer)}
    save_model(module.model, config.weights, description, dtype=export_dtype(config))
    print(f"wrote {config.weights}")
