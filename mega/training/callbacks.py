"""What watches over a run: how long it waits for data, a stop at the first loss that is not finite, and its loggers.

Callbacks that draw what a network does, at each validation: a PNG in the run's folder and in the run's loggers.
"""

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

from mega.rendering import draw_body, draw_people, far_camera, panel
from mega.sampling import predict_deterministic, select_codes
from mega_common.atomic_io import whole_file


def build_loggers(config: DictConfig) -> list[Logger]:
    """The loggers of a config {name: {_target_: …}}.

    Raises ModuleNotFoundError that names the extra to install when W&B is wanted but not there.
    """
    wanted = any(logger._target_.endswith(".WandbLogger") for logger in config.values())
    if wanted and importlib.util.find_spec("wandb") is None:
        raise ModuleNotFoundError(
            "logger=wandb needs Weights & Biases, which is not installed: pip install 'mega-hmr[wandb]' "
            "(in this folder: pip install -e '.[wandb]'), or take logger=csv_tensorboard."
        )
    return [instantiate(logger) for logger in config.values()]


class DataWait(L.Callback):
    """Logs which share of the time a training waits for its data, and how fast it is.

    `train/data_wait_percent` is the time from the end of one batch to the start of the next, in percent of the whole;
    `train/steps_per_second` are optimizer steps in that whole. Both are over the last `steps` batches and leave out the
    gaps in which a validation or a checkpoint was made. On a GPU, which lags behind the Python code, a wait may be
    covered by work still queued: the share is the most that faster loading could save.

    Put it behind other callbacks that work at the end of a batch, whose time would pass for waiting.

    Args:
        steps: length of the window, in batches; that of the log interval is a good one.
    """

    def __init__(self, steps: int = 50):
        self._times: deque[tuple[float, float]] = deque(maxlen=steps)  # of each batch: waited, worked (s)
        self._idle_since: float | None = None  # None: something else than loading has happened since
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

    # Lightning saves checkpoints after the other callbacks' ends of a batch or of a validation.
    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        self._idle_since = None

    def on_validation_start(self, trainer, module) -> None:
        self._idle_since = None


class LossNotFiniteError(RuntimeError):
    """A training's loss became infinite or not a number."""


class StopOnNaN(L.Callback):
    """Stops a training before a loss that is not finite reaches the weights, and keeps the batch that led to it.

    The batch is written to `folder/nan_batch_step_000123_rank0.pt`: {batch (tensors on the CPU), step (optimizer steps
    done), epoch, batch_idx, rank}. The loss is looked at in every step, for which a GPU has to finish its queue. Of
    several processes all stop, each whose own loss is not finite after keeping its batch: those that went on would wait
    for the others' gradients for ever.

    Args:
        folder: of the run; made if need be.

    Raises:
        LossNotFiniteError: from the training, when it happens. The run's last checkpoint is left as it is.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._batch: Any = None
        self._batch_idx = 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._batch, self._batch_idx = batch, batch_idx

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._batch = None  # or its memory stays taken while the next one is fetched

    def on_before_backward(self, trainer, module, loss: Tensor) -> None:
        finite = bool(torch.isfinite(loss).all())
        if not _anywhere(trainer, loss, not finite):
            return
        path = None if finite else self._save_batch(trainer)
        trainer.strategy.barrier()  # the first process that ends may take the others with it
        if path is None:
            raise LossNotFiniteError(
                f"the loss of another process is not finite at step {trainer.global_step}: it says why, and its batch "
                f"is kept in {self.folder}"
            )
        # Of this step: training_step has logged its terms already.
        terms = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("train/")}
        terms.pop("train/data_wait_percent", None)
        terms.pop("train/steps_per_second", None)
        known = "; terms: " + ", ".join(f"{name} {value:.4g}" for name, value in terms.items()) if terms else ""
        raise LossNotFiniteError(
            f"the loss is {loss.item()} at step {trainer.global_step}, epoch {trainer.current_epoch}{known}. "
            f"The batch is kept in {path}: torch.load({str(path)!r}, weights_only=True)['batch']. {_advice(module)}"
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
    """Whether something holds in one of the processes at least; `like` is on their devices."""
    if trainer.world_size == 1:
        return holds
    return bool(trainer.strategy.reduce(torch.tensor(float(holds), device=like.device), reduce_op="max"))


def _advice(module: L.LightningModule) -> str:
    broken = [name for name, weights in module.named_parameters() if not torch.isfinite(weights).all()]
    if broken:
        return (
            f"The weights were not finite before this step (such as {broken[0]}), so a gradient of an earlier one was "
            "not, and the last checkpoint may hold them too: start anew, or from an older one, with a lower learning "
            "rate or trainer.gradient_clip_val=1."
        )
    return (
        "The weights are still finite, and the last checkpoint is from before this step. If the batch holds values "
        "that are not finite or absurd, mend or leave out its items. If it does not, continue with a lower learning "
        "rate, trainer.gradient_clip_val=1 or trainer.precision=32-true."
    )


class MeshPanels(L.Callback):
    """Rows of bodies and their reconstructions, from the first validation batch.

    Args:
        folder: where `step_000500.png` and so on are written.
        n_bodies: how many bodies.
    """

    def __init__(self, folder: Path, n_bodies: int = 6):
        self.folder, self.n_bodies = Path(folder), n_bodies

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx > 0 or trainer.sanity_checking or not trainer.is_global_zero:
            return
        truth = batch["vertices"][: self.n_bodies]
        with torch.no_grad():
            reconstruction = module(truth)
        faces = module.tokenizer.faces.cpu().numpy()
        rows = [
            [(draw_body(mesh, faces), caption if i == 0 else "") for i, mesh in enumerate(meshes.cpu().numpy())]
            for meshes, caption in ((truth, "bodies"), (reconstruction, "from tokens"))
        ]
        log_picture(trainer, self.folder, panel(rows))


def log_picture(trainer: L.Trainer, folder: Path, picture: np.ndarray) -> None:
    """Write an RGB picture (H, W, 3) to the folder, named by the step, and to each logger that takes pictures.

    Of several processes only the first writes; a dry run writes nothing.
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


class PicturePanels(L.Callback):
    """Pictures, true and predicted meshes in place, from the first validation batch.

    Args:
        folder: where the pictures go.
        n_pictures: how many.
    """

    def __init__(self, folder: Path, n_pictures: int = 8):
        self.folder, self.n_pictures = Path(folder), n_pictures

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx > 0 or trainer.sanity_checking or not trainer.is_global_zero:
            return
        images = batch["image"][: self.n_pictures]
        prediction = predict_deterministic(module.model, module.features(images))
        rotation = prediction.rotation
        codes = select_codes(module.tokenizer, prediction, module.decode)
        meshes = {
            "truth": batch["vertices"][: len(images)] @ batch["rotmat"][: len(images)].transpose(1, 2),
            "prediction": module.tokenizer.decode_latents(codes) @ rotation.transpose(1, 2),
        }
        faces = module.tokenizer.faces.cpu().numpy()
        size = images.shape[-1]
        shift, focal, centre = far_camera(prediction.cam.cpu().numpy(), size)
        pictures = images.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)
        rows = [[(picture, "picture" if i == 0 else "") for i, picture in enumerate(pictures)]]
        for name, mesh in meshes.items():
            placed = mesh.cpu().numpy() + shift[:, None]
            drawn = [draw_people(p, v[None], faces, focal, centre) for p, v in zip(pictures, placed, strict=True)]
            rows.append([(picture, name if i == 0 else "") for i, picture in enumerate(drawn)])
        log_picture(trainer, self.folder, panel(rows))
