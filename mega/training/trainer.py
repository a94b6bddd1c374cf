"""What the training scripts share: build the trainer, fit with resume, test, and prepare an export."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from mega.config import build
from mega.optimize import compile_blocks
from mega.training.callbacks import DataWait, Draw, StopOnNaN, ValidationPanels, build_loggers
from mega.training.checkpoints import (
    Checkpoints,
    ConfiguredOptimizer,
    SeedEveryBatch,
    WholeFiles,
    checkpoint_folder,
    load_run_weights,
    say,
)
from mega.training.run_folder import use_run_folder
from mega_common.device import choose_precision
from mega_common.distributed import gather_list, leave
from mega_common.weights_io import is_released
from mesh_vq_vae import MeshVQVAE


class SLURMJob(SLURMEnvironment):
    """The processes that srun has started, for trainer=slurm. Raises ValueError where it has not."""

    def __init__(self):
        missing = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS") if name not in os.environ]
        if missing:
            raise ValueError(
                f"trainer=slurm is for processes that srun has started, which sets {', '.join(missing)}: start the "
                "script with srun or hydra/launcher=slurm, or choose trainer=cpu, gpu or ddp."
            )
        try:
            super().__init__(auto_requeue=False)  # `Checkpoints` asks for the job to be run again
        except RuntimeError as error:
            raise ValueError(f"trainer=slurm: {error}") from error


def build_trainer(config: DictConfig, plugins: Sequence[Any] = (), **options: Any) -> L.Trainer:
    """The config's trainer, with `trainer.precision=auto` replaced by the best precision of the device.

    Several processes are those of torchrun, or of `trainer.plugins`, or else started by Lightning: variables that SLURM
    has left in a shell have no effect. Raises ValueError when the devices that are asked for do not exist.
    """
    asked, device = str(config.trainer.precision), config.trainer.accelerator
    has_gpu = torch.cuda.is_available() or (device == "gpu" and MPSAccelerator.is_available())
    if device in ("gpu", "cuda") and not has_gpu:
        why = "is built without CUDA" if torch.version.cuda is None else "finds none (nvidia-smi lists those there are)"
        raise ValueError(
            f"a GPU was asked for (trainer.accelerator={device}), but PyTorch {torch.__version__} {why}. "
            "trainer=cpu trains without one."
        )
    if device in ("gpu", "auto"):
        device = "cuda" if device == "gpu" or torch.cuda.is_available() else "cpu"
    kind = asked if asked == "auto" else "bf16" if asked.startswith("bf16") else "fp32"
    chosen = choose_precision(kind, device, say)
    precision = {"bf16": "bf16-mixed", "fp32": "32-true"}[chosen] if asked == "auto" else config.trainer.precision
    plugins = [*plugins, *(build(plugin) for plugin in config.trainer.get("plugins") or [])]
    if TorchElasticEnvironment.detect():
        plugins = [each for each in plugins if not isinstance(each, ClusterEnvironment)] + [TorchElasticEnvironment()]
    elif not any(isinstance(each, ClusterEnvironment) for each in plugins):
        plugins.append(LightningEnvironment())
    try:
        trainer = build(config.trainer, precision=precision, default_root_dir=config.output, plugins=plugins, **options)
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from error
    rank_zero_only.rank = trainer.global_rank  # was read from variables that SLURM may have left
    return trainer


def fit(config: DictConfig, module: L.LightningModule, data: L.LightningDataModule, draw: Draw) -> None:
    """Train, resuming from the run's last training state if there is one, and save the state of the end.

    At each validation `draw` draws a panel, see `ValidationPanels`.

    Raises ValueError at the end of a training that had to skip data (`data.problems`), and lists what was skipped.
    """
    folder = checkpoint_folder(config.output)
    checkpoints = Checkpoints(folder, config.checkpoint_minutes, config.monitor, config.requeue)
    average = [] if config.ema_decay is None else [EMAWeightAveraging(decay=config.ema_decay)]
    forced = [ConfiguredOptimizer()] if config.resume == "force" else []
    trainer = build_trainer(
        config,
        enable_checkpointing=False,  # `Checkpoints` does
        logger=build_loggers(config.logger),
        plugins=[WholeFiles()],
        callbacks=[
            SeedEveryBatch(config.seed),
            LearningRateMonitor("step"),
            TQDMProgressBar(refresh_rate=10),
            StopOnNaN(Path(config.output)),
            ValidationPanels(Path(config.output) / "panels", draw),
            *average,
            *forced,
            # Last: what time is left is waiting, and states include what other callbacks did before the batch.
            DataWait(config.trainer.log_every_n_steps),
            checkpoints,
        ],
    )
    if config.compile:
        if not hasattr(module, "model"):
            raise ValueError("compile=true is for the transformers: the tokenizer's sparse products gain nothing")
        compile_blocks(module.model, on_cpu=config.trainer.accelerator == "cpu")
    dry = bool(trainer.fast_dev_run)
    # Lightning does not know that our loaders start at the right batch of an epoch.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    with contextlib.nullcontext() if dry else use_run_folder(config, trainer) as last:
        if last is not None:
            say(f"resuming from {last}")
        try:
            trainer.fit(module, data, ckpt_path=last, weights_only=True)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise ValueError(
                f"{last} belongs to a model of other sizes: choose another output=…, or remove {config.output}. "
                f"({error})"
            ) from error
        if not dry and not checkpoints.trained:
            limits = f"trainer.max_steps={trainer.max_steps}, trainer.max_epochs={trainer.max_epochs}"
            say(
                f"nothing was trained: {config.output} is finished, at step {trainer.global_step} ({limits}). A higher "
                "limit continues it; a new run needs another output=…"
            )
        elif not dry:
            checkpoints.save_end(trainer)
    problems = list(dict.fromkeys(gather_list(getattr(data, "problems", []))))  # several processes may report the same
    leave()
    if problems and trainer.is_global_zero:
        print("\n".join(problems))
        raise ValueError(f"trained to the end, but {len(problems)} problem(s) with the data were skipped, see above")


def test(config: DictConfig, module: L.LightningModule, data: L.LightningDataModule) -> None:
    """Measure a module on the test split and print a table of the metrics."""
    trainer = build_trainer(config, logger=False, enable_checkpointing=False)
    (results,) = trainer.test(module, data, verbose=False)
    width = max(map(len, results))
    say("\n".join(f"{name:<{width}}  {value:10.3f}" for name, value in results.items()))


def prepare_export(config: DictConfig, module: L.LightningModule) -> torch.dtype:
    """Load the run's weights (`export_from`) into a module; returns the type in which they are to be written.

    Raises ValueError when `weights` is a released file, which is never overwritten, and as `load_run_weights`.
    """
    if is_released(config.weights):
        raise ValueError(f"{config.weights} is a released file and is not overwritten: give another weights=FILE.")
    load_run_weights(module, config.output, config.export_from)
    return getattr(torch, config.export_dtype)


def model_arguments(config: DictConfig, tokenizer: MeshVQVAE) -> dict:
    """The arguments of a masked transformer that its file stores to build it again, without the backbone."""
    arguments = {k: v for k, v in OmegaConf.to_container(config).items() if k not in ("_target_", "backbone", "init")}
    return arguments | {"n_tokens": tokenizer.n_tokens, "codebook_size": tokenizer.codebook_size}
