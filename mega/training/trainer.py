"""What the training scripts share: build the trainer, fit with resume, test, and prepare an export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf

from mega.optimize import compile_blocks
from mega.training.callbacks import DataWait, Draw, StopOnNaN, ValidationPanels, build_loggers
from mega.training.checkpoints import (
    Checkpoints,
    SeedEveryBatch,
    WholeFiles,
    checkpoint_folder,
    find_checkpoint,
    load_run_weights,
    say,
)
from mega_common.device import choose_precision
from mega_common.distributed import gather_list, leave
from mega_common.weights_io import is_released
from mesh_vq_vae import MeshVQVAE


def build_trainer(config: DictConfig, **options: Any) -> L.Trainer:
    """The config's trainer, with `trainer.precision=auto` replaced by the best precision of the device."""
    asked, device = str(config.trainer.precision), config.trainer.accelerator
    if device in ("gpu", "auto"):
        device = "cuda" if device == "gpu" or torch.cuda.is_available() else "cpu"
    kind = asked if asked == "auto" else "bf16" if asked.startswith("bf16") else "fp32"
    chosen = choose_precision(kind, device, say)
    precision = {"bf16": "bf16-mixed", "fp32": "32-true"}[chosen] if asked == "auto" else config.trainer.precision
    return instantiate(config.trainer, precision=precision, default_root_dir=config.output, **options)


def fit(config: DictConfig, module: L.LightningModule, data: L.LightningDataModule, draw: Draw) -> None:
    """Train, resuming from the run's last training state if there is one, and save the state of the end.

    At each validation `draw` draws a panel, see `ValidationPanels`.

    Raises ValueError at the end of a training that had to skip data (`data.problems`), and lists what was skipped.
    """
    folder = checkpoint_folder(config.output)
    checkpoints = Checkpoints(folder, config.checkpoint_minutes, config.monitor, config.requeue)
    average = [] if config.ema_decay is None else [EMAWeightAveraging(decay=config.ema_decay)]
    trainer = build_trainer(
        config,
        enable_checkpointing=False,  # `Checkpoints` does
        logger=build_loggers(config.logger),
        # SLURM: `Checkpoints` asks for the job to be run again
        plugins=[WholeFiles(), *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else [])],
        callbacks=[
            SeedEveryBatch(config.seed),
            LearningRateMonitor("step"),
            TQDMProgressBar(refresh_rate=10),
            StopOnNaN(Path(config.output)),
            ValidationPanels(Path(config.output) / "panels", draw),
            *average,
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
    last = None if dry else find_checkpoint(folder)
    if last is not None:
        say(f"resuming from {last}")
    # Lightning does not know that our loaders start at the right batch of an epoch.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    try:
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(
            f"{last} belongs to a model of other sizes: choose another output=…, or remove {config.output}. ({error})"
        ) from error
    if not dry:
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
