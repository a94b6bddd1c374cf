"""Callbacks and loggers of the trainings: time spent waiting for data, a stop at a loss that is not finite, and
pictures of predictions at each validation."""

import importlib.util
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig
from torch import Tensor

from mega.rendering import draw_body, draw_people, far_camera, panel
from mega.sampling import predict_deterministic, sample_unconditional, select_codes
from mega.training.checkpoints import largest
from mega_common.files import whole_file
from mesh_vq_vae import MeshVQVAE


def build_loggers(config: DictConfig) -> list[Logger]:
    """The loggers of a config {name: {_target_: …}}.

    Raises ModuleNotFoundError, with the command that installs it, when W&B is wanted but not installed.
    """
    wanted = any(logger._target_.endswith(".WandbLogger") for logger in config.values())
    if wanted and importlib.util.find_spec("wandb") is None:
        raise ModuleNotFoundError(
            "logger=wandb needs Weights & Biases, which is not installed: pip install 'mega-hmr[wandb]' "
            "(in this folder: pip install -e '.[wandb]'), or use logger=csv_tensorboard."
        )
    return [instantiate(logger) for logger in config.values()]


class DataWait(L.Callback):
    """Logs the share of time that a training waits for data, and its speed, over the last `steps` batches.

    `train/data_wait_percent` is the time between the end of a batch and the start of the next, in percent of the total;
    `train/steps_per_second` counts optimizer steps. Batches before which a validation ran or a checkpoint was saved are
    left out. On a GPU, which lags behind the Python code, queued work may hide a wait: the share is then the most that
    faster loading could save.

    Place it after other callbacks that work at the end of a batch, otherwise their time counts as waiting.
    """

    def __init__(self, steps: int = 50):
        self._times: deque[tuple[float, float]] = deque(maxlen=steps)  # seconds waited and worked, per batch
        self._idle_since: float | None = None  # None: the time until the next batch is not only loading
        self._started = 0.0

    def on_train_epoch_start(self, trainer, module) -> None:
        self._idle_since = time.perf_counter()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        ended = time.perf_counter()
        if self._idle_since is not None:
            self._times.append((self._started - self._idle_since, ended - self._started))
        self._idle_since = ended
        if self._times:
            waited, worked = map(sum, zip(*self._times, strict=True))
            speed = len(self._times) / trainer.accumulate_grad_batches / (waited + worked)
            module.log("train/data_wait_percent", 100 * waited / (waited + worked), prog_bar=True)
            module.log("train/steps_per_second", speed)

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        self._idle_since = None

    def on_validation_start(self, trainer, module) -> None:
        self._idle_since = None


class StopOnNaN(L.Callback):
    """Stops a training before a loss that is not finite reaches the weights, and saves the batch that caused it.

    The batch is written to `folder/nan_batch_step_000123_rank0.pt`: {batch (tensors on the CPU), step (optimizer steps
    done), epoch, batch_idx, rank}. The loss is checked in every step, for which a GPU has to finish its queue. If it is
    not finite in one of several processes, all of them stop: the others would wait for its gradients forever.

    Raises FloatingPointError, which ends the training. The run's last checkpoint is left as it is.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._batch: Any = None
        self._batch_idx = 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._batch, self._batch_idx = batch, batch_idx

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._batch = None  # frees its memory while the next one is loaded

    def on_before_backward(self, trainer, module, loss: Tensor) -> None:
        finite, step, epoch = bool(torch.isfinite(loss).all()), trainer.global_step, trainer.current_epoch
        if not largest(trainer, float(not finite)):
            return
        path = self.folder / f"nan_batch_step_{step:06d}_rank{trainer.global_rank}.pt"
        if not finite:
            batch = move_data_to_device(self._batch, torch.device("cpu"))
            place = {"step": step, "epoch": epoch, "batch_idx": self._batch_idx, "rank": trainer.global_rank}
            with whole_file(path) as file:
                torch.save({"batch": batch} | place, file)
        trainer.strategy.barrier()  # the first process that ends may end the others
        if finite:
            raise FloatingPointError(
                f"the loss of another process is not finite at step {step}: see its message; its batch is saved in "
                f"{self.folder}"
            )
        speed = ("train/data_wait_percent", "train/steps_per_second")
        # training_step has logged the terms of this step already.
        logged = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("train/") and k not in speed}
        terms = "; terms: " + ", ".join(f"{name} {value:.4g}" for name, value in logged.items()) if logged else ""
        raise FloatingPointError(
            f"the loss is {loss.item()} at step {step}, epoch {epoch}{terms}. "
            f"The batch is saved in {path}: torch.load({str(path)!r}, weights_only=True)['batch']. {_advice(module)}"
        )


def _advice(module: L.LightningModule) -> str:
    broken = [name for name, weights in module.named_parameters() if not torch.isfinite(weights).all()]
    if broken:
        return (
            f"The weights were not finite before this step (such as {broken[0]}): a gradient of an earlier step was "
            "not, and the last checkpoint may hold them too. Start again, or from an older checkpoint, with a lower "
            "learning rate or trainer.gradient_clip_val=1."
        )
    return (
        "The weights are still finite, and the last checkpoint is from before this step. If the batch holds values "
        "that are not finite or absurd, correct or remove its items. If not, resume with resume=force and a lower "
        "learning rate, trainer.gradient_clip_val=1 or trainer.precision=32-true."
    )


# Pictures

Rows = dict[str, list[np.ndarray]]  # {caption: RGB pictures (H, W, 3) uint8}, one row of a panel each
Draw = Callable[[L.LightningModule, dict[str, Tensor]], Rows]  # (module, batch) -> the rows of a panel


class ValidationPanels(L.Callback):
    """Writes a panel to `folder` at each validation, drawn from the first eight items of its first batch."""

    def __init__(self, folder: Path, draw: Draw):
        self.folder, self.draw = folder, draw

    @torch.no_grad()
    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx == 0 and not trainer.sanity_checking and trainer.is_global_zero:
            rows = self.draw(module, {name: values[:8] for name, values in batch.items()})
            log_picture(trainer, self.folder, panel([_captioned(*row) for row in rows.items()]))


def _captioned(caption: str, pictures: list[np.ndarray]) -> list[tuple[np.ndarray, str]]:
    return [(picture, caption if i == 0 else "") for i, picture in enumerate(pictures)]


def draw_reconstructions(module: L.LightningModule, batch: dict[str, Tensor]) -> Rows:
    """Bodies, and their reconstructions by the tokenizer."""
    meshes = {"bodies": batch["vertices"], "from tokens": module(batch["vertices"])}
    return {name: _draw_bodies(module.tokenizer, m) for name, m in meshes.items()}


def draw_random_bodies(tokenizer: MeshVQVAE, module: L.LightningModule, batch: dict[str, Tensor]) -> Rows:
    """As many bodies as a batch has, sampled from a prior with the same noise each time."""
    noise = torch.Generator(module.device).manual_seed(0)
    tokens = sample_unconditional(module.model, len(batch["tokens"]), generator=noise)
    return {"random bodies": _draw_bodies(tokenizer, tokenizer.to(module.device).decode(tokens))}


def _draw_bodies(tokenizer: MeshVQVAE, meshes: Tensor) -> list[np.ndarray]:
    faces = tokenizer.faces.cpu().numpy()
    return [draw_body(mesh, faces) for mesh in meshes.cpu().numpy()]


def draw_predictions(module: L.LightningModule, batch: dict[str, Tensor]) -> Rows:
    """Images, and the true and the predicted mesh drawn on them."""
    images = batch["image"]
    prediction = predict_deterministic(module.model, module.features(images))
    codes = select_codes(module.tokenizer, prediction, module.config.decode)
    meshes = {
        "truth": batch["vertices"] @ batch["rotmat"].mT,
        "prediction": module.tokenizer.decode_latents(codes) @ prediction.rotation.mT,
    }
    faces = module.tokenizer.faces.cpu().numpy()
    shift, *camera = far_camera(prediction.cam.cpu().numpy(), images.shape[-1])
    rows = {"picture": list(images.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8))}
    for name, mesh in meshes.items():
        placed = zip(rows["picture"], mesh.cpu().numpy() + shift[:, None], strict=True)
        rows[name] = [draw_people(picture, body[None], faces, *camera) for picture, body in placed]
    return rows


def log_picture(trainer: L.Trainer, folder: Path, picture: np.ndarray) -> None:
    """Write an RGB picture (H, W, 3) to `folder/step_000500.png` and to each logger that takes pictures.

    A dry run writes nothing.
    """
    if trainer.fast_dev_run:
        return
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"step_{trainer.global_step:06d}.png"), picture[..., ::-1])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(folder.name, picture, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(folder.name, [picture], trainer.global_step)
