"""Callbacks and loggers of the trainings: time spent waiting for data, a stop at a loss that is not finite, and
pictures of predictions at each validation."""

from __future__ import annotations

import importlib.util
import time
from collections import deque
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

from mega.geometry import crop_camera_to_full
from mega.rendering import draw_body, draw_people, panel
from mega.sampling import predict_deterministic, select_codes
from mega_common.files import whole_file


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
    """Logs the share of time that a training waits for data, and its speed.

    `train/data_wait_percent` is the time between the end of a batch and the start of the next, in percent of the total;
    `train/steps_per_second` counts optimizer steps. Both are over the last `steps` batches, without the gaps in which a
    validation ran or a checkpoint was saved. On a GPU, which lags behind the Python code, queued work may hide a wait:
    the share is then the most that faster loading could save.

    Place it after other callbacks that work at the end of a batch, otherwise their time counts as waiting.

    Args:
        steps: length of the window, in batches.
    """

    def __init__(self, steps: int = 50):
        self._times: deque[tuple[float, float]] = deque(maxlen=steps)  # seconds waited and worked, per batch
        self._idle_since: float | None = None  # None: the next gap is not only loading
        self._waited: float | None = None
        self._started = 0.0

    def on_train_epoch_start(self, trainer, module) -> None:
        self._idle_since = time.perf_counter()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._started = time.perf_counter()
        self._waited = None if self._idle_since is None else self._started - self._idle_since

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._idle_since = time.perf_counter()
        if self._waited is not None:
            self._times.append((self._waited, self._idle_since - self._started))
        if not self._times:
            return
        waited, worked = map(sum, zip(*self._times, strict=True))
        speed = len(self._times) / trainer.accumulate_grad_batches / (waited + worked)
        module.log("train/data_wait_percent", 100 * waited / (waited + worked), prog_bar=True)
        module.log("train/steps_per_second", speed)

    # Lightning saves checkpoints after the callbacks at the end of a batch or of a validation.
    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        self._idle_since = None

    def on_validation_start(self, trainer, module) -> None:
        self._idle_since = None


class LossNotFiniteError(RuntimeError):
    """The loss of a training is infinite or NaN."""


class StopOnNaN(L.Callback):
    """Stops a training before a loss that is not finite reaches the weights, and saves the batch that caused it.

    The batch is written to `folder/nan_batch_step_000123_rank0.pt`: {batch (tensors on the CPU), step (optimizer steps
    done), epoch, batch_idx, rank}. The loss is checked in every step, for which a GPU has to finish its queue. If it is
    not finite in one of several processes, all of them stop: the others would wait for its gradients forever.

    Args:
        folder: the folder of the run.

    Raises:
        LossNotFiniteError: from the training. The run's last checkpoint is left as it is.
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
        finite = bool(torch.isfinite(loss).all())
        if not _anywhere(trainer, loss, not finite):
            return
        path = None if finite else self._save_batch(trainer)
        trainer.strategy.barrier()  # the first process that ends may end the others
        if path is None:
            raise LossNotFiniteError(
                f"the loss of another process is not finite at step {trainer.global_step}: see its message; its batch "
                f"is saved in {self.folder}"
            )
        # training_step has logged the terms of this step already.
        terms = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("train/")}
        terms.pop("train/data_wait_percent", None)
        terms.pop("train/steps_per_second", None)
        known = "; terms: " + ", ".join(f"{name} {value:.4g}" for name, value in terms.items()) if terms else ""
        raise LossNotFiniteError(
            f"the loss is {loss.item()} at step {trainer.global_step}, epoch {trainer.current_epoch}{known}. "
            f"The batch is saved in {path}: torch.load({str(path)!r}, weights_only=True)['batch']. {_advice(module)}"
        )

    def _save_batch(self, trainer: L.Trainer) -> Path:
        path = self.folder / f"nan_batch_step_{trainer.global_step:06d}_rank{trainer.global_rank}.pt"
        content = {
            "batch": move_data_to_device(self._batch, torch.device("cpu")),
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch_idx": self._batch_idx,
            "rank": trainer.global_rank,
        }
        with whole_file(path) as file:
            torch.save(content, file)
        return path


def _anywhere(trainer: L.Trainer, like: Tensor, holds: bool) -> bool:
    """Whether something holds in at least one of the processes; `like` is a tensor on the device."""
    if trainer.world_size == 1:
        return holds
    return bool(trainer.strategy.reduce(torch.tensor(float(holds), device=like.device), reduce_op="max"))


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
        "that are not finite or absurd, correct or remove its items. If not, resume with a lower learning rate, "
        "trainer.gradient_clip_val=1 or trainer.precision=32-true."
    )


class ValidationPanels(L.Callback):
    """Draws the first validation batch with what the module predicts for it, at each validation.

    Args:
        folder: where `step_000500.png` and so on are written.
        n_bodies: number of bodies.
    """

    def __init__(self, folder: Path, n_bodies: int = 8):
        self.folder, self.n_bodies = Path(folder), n_bodies

    @torch.no_grad()
    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx == 0 and not trainer.sanity_checking and trainer.is_global_zero:
            rows = self.rows(module, {name: value[: self.n_bodies] for name, value in batch.items()})
            log_picture(trainer, self.folder, panel([_captioned(*row) for row in rows.items()]))

    def rows(self, module: L.LightningModule, batch: dict[str, Tensor]) -> dict[str, list[np.ndarray]]:
        """{caption: pictures}, one row of the panel each."""
        raise NotImplementedError


def _captioned(caption: str, pictures: list[np.ndarray]) -> list[tuple[np.ndarray, str]]:
    return [(picture, caption if i == 0 else "") for i, picture in enumerate(pictures)]


class MeshPanels(ValidationPanels):
    """Bodies and their reconstructions from tokens."""

    def rows(self, module: L.LightningModule, batch: dict[str, Tensor]) -> dict[str, list[np.ndarray]]:
        faces = module.tokenizer.faces.cpu().numpy()
        meshes = {"bodies": batch["vertices"], "from tokens": module(batch["vertices"])}
        return {name: [draw_body(mesh, faces) for mesh in m.cpu().numpy()] for name, m in meshes.items()}


class PicturePanels(ValidationPanels):
    """Images, and the true and the predicted mesh drawn on them."""

    def rows(self, module: L.LightningModule, batch: dict[str, Tensor]) -> dict[str, list[np.ndarray]]:
        images = batch["image"]
        prediction = predict_deterministic(module.model, module.features(images))
        codes = select_codes(module.tokenizer, prediction, module.decode)
        meshes = {
            "truth": batch["vertices"] @ batch["rotmat"].mT,
            "prediction": module.tokenizer.decode_latents(codes) @ prediction.rotation.mT,
        }
        faces, size = module.tokenizer.faces.cpu().numpy(), images.shape[-1]
        focal, centre = 5.0 * size, (size / 2, size / 2)  # from far away: close to weak perspective
        square = torch.tensor([[0.0, 0.0, size, size]]).expand(len(images), 4)
        shift = crop_camera_to_full(prediction.cam.cpu(), square, torch.tensor([size, size]).float(), focal)
        pictures = list(images.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8))
        rows = {"picture": pictures}
        for name, mesh in meshes.items():
            placed = (mesh.cpu() + shift[:, None]).numpy()
            rows[name] = [draw_people(p, v[None], faces, focal, centre) for p, v in zip(pictures, placed, strict=True)]
        return rows


def log_picture(trainer: L.Trainer, folder: Path, picture: np.ndarray) -> None:
    """Write an RGB picture (H, W, 3) to `folder/step_000500.png` and to each logger that takes pictures.

    Only the first of several processes writes; a dry run writes nothing.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"step_{trainer.global_step:06d}.png"), picture[..., ::-1])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(folder.name, picture, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(folder.name, [picture], trainer.global_step)
