"""What the training scripts share: a trainer from a config, continuing the last run, and fitting or testing with it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf

from mega.optimize import compile_blocks
from mega.training.callbacks import DataWait, StopOnNaN, build_loggers
from mega.training.checkpoints import LAST, Checkpoints, SeedEveryBatch, WholeFiles, find_checkpoint, say
from mega_common.device import choose_precision
from mega_common.distributed import gather_list
from mesh_vq_vae import MeshVQVAE


def checkpoint_folder(output: str | Path) -> Path:
    """Where the training states of a run lie."""
    return Path(output) / "checkpoints"


def begin(config: DictConfig) -> None:
    """To be called before anything is built: initial weights follow from the seed."""
    L.seed_everything(config.seed, verbose=False)


def export_dtype(config: DictConfig) -> torch.dtype:
    """Of the weights that mode=export writes."""
    return getattr(torch, config.export_dtype)


def model_arguments(config: DictConfig, tokenizer: MeshVQVAE) -> dict:
    """The arguments a masked transformer was built with, backbone apart: what its file must say to build it again."""
    arguments = {k: v for k, v in OmegaConf.to_container(config).items() if k not in ("_target_", "backbone", "init")}
    return arguments | {"n_tokens": tokenizer.n_tokens, "codebook_size": tokenizer.codebook_size}


def build_trainer(config: DictConfig, checkpoints: Checkpoints, callbacks: Sequence[Callback] = ()) -> L.Trainer:
    """The config's trainer with loggers, and the callbacks that every training has."""
    every = [
        SeedEveryBatch(config.seed),
        LearningRateMonitor("step"),
        TQDMProgressBar(refresh_rate=10),
        StopOnNaN(Path(config.output)),
        *callbacks,
    ]
    if config.ema_decay is not None:
        every.append(EMAWeightAveraging(decay=config.ema_decay))
    # Last of all: a state holds what the others did before the batch, and waiting is what is left of the time.
    every += [DataWait(config.trainer.log_every_n_steps), checkpoints]
    plugins: list = [WholeFiles()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # `Checkpoints` does
    loggers = build_loggers(config.logger)
    options = {"enable_checkpointing": False, "default_root_dir": config.output}  # `Checkpoints` writes, nobody else
    return _trainer(config, logger=loggers, callbacks=every, plugins=plugins, **options)


def _trainer(config: DictConfig, **options: Any) -> L.Trainer:
    """The config's trainer; `trainer.precision=auto` becomes what the device is good at."""
    asked, device = str(config.trainer.precision), config.trainer.accelerator
    if device in ("gpu", "auto"):
        device = "cuda" if device == "gpu" or torch.cuda.is_available() else "cpu"
    kind = asked if asked == "auto" else "bf16" if asked.startswith("bf16") else "fp32"
    chosen = choose_precision(kind, device, say)
    precision = {"bf16": "bf16-mixed", "fp32": "32-true"}[chosen] if asked == "auto" else config.trainer.precision
    return instantiate(config.trainer, precision=precision, **options)


def fit(config: DictConfig, module: L.LightningModule, data: L.LightningDataModule, callbacks=()) -> None:
    """Train, from the run's last checkpoint where there is one, and leave a checkpoint of the end."""
    folder = checkpoint_folder(config.output)
    checkpoints = Checkpoints(folder, config.checkpoint_minutes, config.monitor, config.requeue)
    trainer = build_trainer(config, checkpoints, callbacks)
    if config.compile:
        compile_network(module, on_cpu=config.trainer.accelerator == "cpu")
    dry = bool(trainer.fast_dev_run)
    last = None if dry else find_checkpoint(folder)
    if last is not None:
        say(f"continuing from {last}")
    # Lightning does not know that our loaders start where the epoch was left.
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
    problems = list(dict.fromkeys(gather_list(getattr(data, "problems", []))))  # processes may tell the same ones
    if problems and trainer.is_global_zero:
        print("\n".join(problems))
        raise SystemExit(
            f"trained to the end, but {len(problems)} problem(s) with the data were passed over, see above"
        )


def compile_network(module: L.LightningModule, on_cpu: bool) -> None:
    """Send what a training module trains through torch.compile; raises as `compile_blocks`."""
    if not hasattr(module, "model"):
        raise ValueError("compile=true is for the masked transformers; the tokenizer's sparse products gain nothing")
    compile_blocks(module.model, on_cpu)


def test(config: DictConfig, module: L.LightningModule, data: L.LightningDataModule) -> dict[str, float]:
    """Measure a module on the test split and print a table of the numbers."""
    trainer = _trainer(config, logger=False, enable_checkpointing=False, default_root_dir=config.output)
    (results,) = trainer.test(module, data, verbose=False)
    width = max(map(len, results))
    say("\n".join(f"{name:<{width}}  {value:10.3f}" for name, value in results.items()))
    return results


def load_run_weights(module: L.LightningModule, output: str | Path, which: str = "last") -> None:
    """The weights of a run into a module, strictly: `which` is "last" or "best_NAME", a name in the config's `monitor`.

    Raises FileNotFoundError when the run has left none yet, ValueError for another `which`.
    """
    folder = checkpoint_folder(output)
    last = find_checkpoint(folder)
    if last is None:
        raise FileNotFoundError(f"there is no training state {folder / LAST} yet: run the script with mode=train first")
    paths = {"last": last} | {path.stem: path for path in sorted(folder.glob("best_*.ckpt"))}
    if which not in paths:
        raise ValueError(f"export_from={which} is not in {folder}: choose {' or '.join(paths)}")
    module.load_state_dict(torch.load(paths[which], map_location="cpu", weights_only=True)["state_dict"])
