"""Training states on disk. A run that stops at any moment resumes from them exactly.

    runs/NAME/checkpoints/last.ckpt        the newest state
                          previous.ckpt    the state before, in case the newest is broken
                          best_NAME.ckpt   weights only, of the validation with the lowest value of a metric so far

States are saved right before a batch. All randomness of a training step is a function of (seed, epoch, batch), and all
randomness of the data is a function of (seed, epoch, row), so no state of a random generator has to be saved.
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

from mega_common.weights_io import read_torch

say = rank_zero_only(print)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

# What a cluster sends before it ends a job: SIGTERM; before the time limit SIGUSR1, if users ask for it, or SIGUSR2,
# which submitit asks for. Windows has SIGTERM only.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
_SAVE = 1  # below the numbers of these signals


def checkpoint_folder(output: str | Path) -> Path:
    """Folder of a run's training states."""
    return Path(output) / "checkpoints"


class LightningInternals:
    """The only place that reads or writes attributes of Lightning which are not part of its public interface."""

    def __init__(self, trainer: L.Trainer):
        self.trainer, self.loop = trainer, trainer.fit_loop

    def set_logged_steps(self, steps: int) -> None:
        """Set the step at which metrics are logged: Lightning's own count is one ahead after resuming."""
        self.loop.epoch_loop._batches_that_stepped = steps

    def planned_steps(self) -> float:
        """The number of steps that the training is going to make. Also sets `trainer.num_training_batches`."""
        steps = self.trainer.estimated_stepping_batches
        # Lightning has made a loader of the whole first epoch to count its batches, and would keep it for a training
        # that is resumed in the middle of that epoch.
        self.loop._combined_loader = None
        return steps

    def reopen_epoch(self) -> None:
        """Correct the counters at the end of a training, so that one with more steps or epochs continues from here."""
        batches, epochs = self.loop.epoch_loop.batch_progress, self.loop.epoch_progress
        if batches.is_last_batch:
            batches.reset_on_run()  # otherwise the next epoch would count as trained
        elif batches.current.completed > 0 and epochs.current.completed == epochs.current.ready:
            for count in (epochs.total, epochs.current):  # an epoch cut short by `max_steps` counts as completed
                count.processed -= 1
                count.completed -= 1


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and renames it; the last state is kept as the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")  # overwrites what a killed run left
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        temporary.replace(path)


def find_checkpoint(folder: str | Path) -> Path | None:
    """The newest intact state in a folder of checkpoints, or None; a broken one is reported and skipped.

    Raises ValueError when all states are broken.
    """
    found = [path for name in (LAST, PREVIOUS) if (path := Path(folder) / name).is_file()]
    for path in found:
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is None:  # complete, with the right checksums; nothing is unpickled
                    return path
        except (zipfile.BadZipFile, OSError, EOFError):
            pass
        say(f"{path} is broken (cut short, or damaged on disk) and is skipped")
    if found:
        raise ValueError(f"every training state in {folder} is broken: remove the folder to start again")
    return None


def load_run_weights(module: L.LightningModule, output: str | Path, which: str = "last") -> None:
    """Load the weights of a run into a module, strictly.

    Args:
        which: "last", or "best_NAME" with a name in the config's `monitor`.

    Raises FileNotFoundError when the run has saved no state yet, ValueError for another `which`.
    """
    folder = checkpoint_folder(output)
    last = find_checkpoint(folder)
    if last is None:
        raise FileNotFoundError(f"there is no training state {folder / LAST} yet: run the script with mode=train first")
    paths = {"last": last} | {path.stem: path for path in sorted(folder.glob("best_*.ckpt"))}
    if which not in paths:
        raise ValueError(f"export_from={which} is not in {folder}: choose {' or '.join(paths)}")
    module.load_state_dict(read_torch(paths[which])["state_dict"])


def largest(trainer: L.Trainer, value: float) -> float:
    """The largest value of all processes."""
    if trainer.world_size == 1:
        return value
    on_device = torch.tensor(float(value), device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(on_device, reduce_op="max"))


class Checkpoints(L.Callback):
    """Saves the state at regular intervals, at every epoch and when the run is asked to stop; keeps the best weights.

    Args:
        folder: for the files.
        minutes: between two states; 0 saves before every batch.
        monitor: {name: logged validation metric}; the weights with the lowest value are kept as best_NAME.ckpt.
        requeue: when SLURM is about to end the job for its time limit (SIGUSR1), ask it to run the job again.
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
        self.trained = False  # whether there was a batch to train on
        self._saved_at = time.monotonic()
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._saved_at = time.monotonic()
        # These replace Lightning's handler of SIGTERM, which stops without saving.
        self._handlers = {number: signal.signal(number, self._remember) for number in _SIGNALS}

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._handlers = {}

    def _remember(self, number: int, frame: Any) -> None:
        self._signal = number

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.trained = True
        LightningInternals(trainer).set_logged_steps(trainer.global_step)
        if batch_idx % trainer.accumulate_grad_batches != 0:
            return  # the gradients of the batches before would be lost
        new_epoch = batch_idx == 0 and trainer.current_epoch > 0
        due = new_epoch or time.monotonic() - self._saved_at >= self.seconds
        # The processes must agree: a signal may have reached only one of them, and clocks differ.
        wanted = int(largest(trainer, max(self._signal, _SAVE if due else 0)))
        if wanted:
            trainer.save_checkpoint(self.folder / LAST)
            self._saved_at = time.monotonic()
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
                state = {"state_dict": trainer.strategy.lightning_module_state_dict()}
                for callback in trainer.callbacks:
                    if isinstance(callback, WeightAveraging):  # the average is what was validated
                        callback.on_save_checkpoint(trainer, module, state)
                weights = {"state_dict": state["state_dict"]}
                trainer.strategy.save_checkpoint(weights, self.folder / f"best_{name}.ckpt")
                trainer.strategy.barrier()

    def save_end(self, trainer: L.Trainer) -> None:
        """Save the state of a run that has ended; a run with more steps or epochs continues from it."""
        LightningInternals(trainer).reopen_epoch()
        trainer.save_checkpoint(self.folder / LAST)

    def _stop(self, trainer: L.Trainer, number: int) -> None:
        name = signal.Signals(number).name
        say(f"{name}: saved step {trainer.global_step} in {self.folder}; the same command resumes")
        job, previous_handler = os.environ.get("SLURM_JOB_ID"), self._handlers.get(number)
        if name == "SIGUSR1" and job and self.requeue and trainer.is_global_zero:
            try:
                subprocess.run(["scontrol", "requeue", job], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                say(f"SLURM could not be asked to run job {job} again ({error}): submit it again")
        if name == "SIGUSR2" and callable(previous_handler):
            previous_handler(number, None)  # submitit's own, which submits the job again
        raise SystemExit(128 + number)


class SeedEveryBatch(L.Callback):
    """Makes the random numbers of a training step a function of (seed, epoch, batch), the same on every process.

    What is drawn for the rows of a batch is drawn for those of all processes (`mega_common.distributed.draw_rows`).
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        key = f"{self.seed}, {trainer.current_epoch}, {batch_idx}".encode()
        torch.manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1)


class ConfiguredOptimizer(L.Callback):
    """Gives optimizers and learning rates the options of the config after a resume, which restores the stored ones."""

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._options = [{name: value for name, value in group.items() if name != "params"} for group in groups]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for group, options in zip(groups, self._options, strict=True):
            group.update(options)
        for schedule in (config.scheduler for config in trainer.lr_scheduler_configs):  # of the type LambdaLR
            schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]
            rates = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, (rate, factor) in zip(schedule.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor(schedule.last_epoch)
