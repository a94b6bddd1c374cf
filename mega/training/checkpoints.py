"""Training states on disk: whole or not at all, often, and from any of them a run goes on as if nothing had happened.

    runs/NAME/checkpoints/last.ckpt        the newest state
                          previous.ckpt    the one before, should the newest turn out broken
                          best_NAME.ckpt   weights alone, of the validation with the least value of a metric so far

States are taken right before a batch. All randomness in a training step is a function of (seed, epoch, batch) and all
in the data of (seed, epoch, row), so nothing else has to be remembered.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

say = rank_zero_only(print)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

# What a cluster says before it kills: a plain request, the end of the time limit as users ask for it, and as submitit
# does.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_SAVE = 1  # smaller than any signal's number but that of SIGHUP, which is none of ours


class WholeFiles(TorchCheckpointIO):
    """Writes beside the target, then renames, so that what is there is whole; the last state stays as previous."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")  # what a killed run left of it is written over
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        temporary.replace(path)


def find_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole state in a folder of checkpoints, or None; tells of a broken one.

    Raises ValueError when there are states, but all are broken.
    """
    found = [path for name in (LAST, PREVIOUS) if (path := Path(folder) / name).is_file()]
    for path in found:
        if _is_whole(path):
            return path
        say(f"{path} is broken (cut short, or damaged on disk) and is passed over")
    if found:
        raise ValueError(f"every training state in {folder} is broken: remove the folder to start anew")
    return None


def _is_whole(path: Path) -> bool:
    """Whether the archive is complete and its checksums hold; nothing in it is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def best_checkpoint(name: str) -> str:
    """File name of the best weights by the metric `name` of a config's `monitor`."""
    return f"best_{name}.ckpt"


class StoppedBySignal(SystemExit):
    """The run was asked to stop, and has saved its state."""


class Checkpoints(L.Callback):
    """Saves the state every so many minutes, at every epoch and when the run is told to stop; keeps the best weights.

    Args:
        folder: for the files.
        minutes: between two states; 0 saves before every batch.
        monitor: {name: logged validation metric}; the weights of each one's least value are kept, as best_NAME.ckpt.
        requeue: on a cluster that is about to end the job for its time (SIGUSR1), ask SLURM to run it again.
    """

    def __init__(
        self,
        folder: str | Path,
        minutes: float = 10.0,
        monitor: Mapping[str, str] | None = None,
        requeue: bool = True,
    ):
        self.folder, self.seconds, self.requeue = Path(folder), 60 * minutes, requeue
        self.monitor = dict(monitor or {})
        self.best: dict[str, float] = {}
        self._saved_at = time.monotonic()
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._saved_at = time.monotonic()
        # Lightning has put a handler of its own for SIGTERM, which stops without saving.
        self._handlers = {number: signal.signal(number, self._remember) for number in _SIGNALS}

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._handlers = {}

    def _remember(self, number: int, frame: Any) -> None:
        self._signal = number

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        # Lightning's count of logged steps is one ahead after a continuation.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if batch_idx % trainer.accumulate_grad_batches != 0:
            return  # gradients of the batches before would be lost
        new_epoch = batch_idx == 0 and trainer.current_epoch > 0
        due = new_epoch or time.monotonic() - self._saved_at >= self.seconds
        # The processes must agree: a signal may have reached one only, and clocks differ.
        wanted = max(self._signal, _SAVE if due else 0)
        if trainer.world_size > 1:
            on_device = torch.tensor(float(wanted), device=module.device)
            wanted = int(trainer.strategy.reduce(on_device, reduce_op="max"))
        if wanted:
            self.save(trainer)
        if wanted > _SAVE:
            self._stop(trainer, wanted)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for name, metric in self.monitor.items():
            if metric not in trainer.callback_metrics:
                known = ", ".join(sorted(k for k in trainer.callback_metrics if k.startswith("val/")))
                raise ValueError(f"monitor.{name}={metric} is not a metric of this validation; choose from {known}")
            score = float(trainer.callback_metrics[metric])
            if score < self.best.get(name, float("inf")) and not trainer.fast_dev_run:
                self.best[name] = score
                self._save_weights(trainer, module, self.folder / best_checkpoint(name))

    @staticmethod
    def _save_weights(trainer: L.Trainer, module: L.LightningModule, path: Path) -> None:
        state = {"state_dict": trainer.strategy.lightning_module_state_dict()}
        for callback in trainer.callbacks:
            if isinstance(callback, WeightAveraging):  # the average is what was validated
                callback.on_save_checkpoint(trainer, module, state)
        trainer.strategy.save_checkpoint({"state_dict": state["state_dict"]}, path)
        trainer.strategy.barrier()

    def save(self, trainer: L.Trainer) -> None:
        """Write the state as the last one."""
        trainer.save_checkpoint(self.folder / LAST)
        self._saved_at = time.monotonic()

    def save_end(self, trainer: L.Trainer) -> None:
        """Write the state of a run that has ended, from which one with more steps or epochs goes on."""
        batches, epochs = trainer.fit_loop.epoch_loop.batch_progress, trainer.fit_loop.epoch_progress
        if batches.is_last_batch:
            batches.reset_on_run()  # or the next epoch would pass for trained
        elif batches.current.completed > 0 and epochs.current.completed == epochs.current.ready:
            for count in (epochs.total, epochs.current):  # Lightning takes an epoch that `max_steps` cut short for done
                count.processed -= 1
                count.completed -= 1
        self.save(trainer)

    def _stop(self, trainer: L.Trainer, number: int) -> None:
        name = signal.Signals(number).name
        say(f"{name}: saved step {trainer.global_step} in {self.folder}; the same command continues")
        job, others = os.environ.get("SLURM_JOB_ID"), self._handlers.get(number)
        if number == signal.SIGUSR1 and job and self.requeue and trainer.is_global_zero:
            try:
                subprocess.run(["scontrol", "requeue", job], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                say(f"SLURM could not be asked to run job {job} again ({error}): submit it once more")
        if number == signal.SIGUSR2 and callable(others):
            others(number, None)  # submitit's own: it submits the job again
        raise StoppedBySignal(128 + number)


class SeedEveryBatch(L.Callback):
    """Random numbers of a training step are a function of (seed, epoch, batch), the same on every process.

    What is drawn for the rows of a batch is drawn for those of all processes (`mega_common.distributed.draw_rows`).
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        key = f"{self.seed}, {trainer.current_epoch}, {batch_idx}".encode()
        torch.manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1)
