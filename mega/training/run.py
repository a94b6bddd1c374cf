"""What the training scripts share: a trainer from a config, continuing the last run, and fitting or testing with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from omegaconf import DictConfig, OmegaConf

from mesh_vq_vae import MeshVQVAE

LAST = "last.ckpt"


def last_checkpoint(output: str | Path) -> Path:
    """Where the last training state of a run lies."""
    return Path(output) / "checkpoints" / LAST


def check_mode(mode: str) -> None:
    """Raise ValueError for a mode that the training scripts do not have."""
    if mode not in ("train", "test", "export"):
        raise ValueError(f"unknown mode '{mode}': choose train, test or export")


def model_arguments(config: DictConfig, tokenizer: MeshVQVAE) -> dict:
    """The arguments a masked transformer was built with, backbone apart: what its file must say to build it again."""
    arguments = {k: v for k, v in OmegaConf.to_container(config).items() if k not in ("_target_", "backbone")}
    return arguments | {"n_tokens": tokenizer.n_tokens, "codebook_size": tokenizer.codebook_size}


def build_trainer(config: DictConfig, callbacks: Sequence[Callback] = ()) -> L.Trainer:
    """The config's trainer, with loggers, and a checkpoint every `checkpoint_minutes`."""
    checkpoints = ModelCheckpoint(
        dirpath=last_checkpoint(config.output).parent,
        filename=Path(LAST).stem,
        train_time_interval=timedelta(minutes=config.checkpoint_minutes),
        enable_version_counter=False,
    )
    loggers = [instantiate(logger) for logger in config.logger.values()]
    every = [checkpoints, LearningRateMonitor("step"), TQDMProgressBar(refresh_rate=10), *callbacks]
    return instantiate(config.trainer, logger=loggers, callbacks=every, default_root_dir=config.output)


def fit(config: DictConfig, module: L.LightningModule, data: L.LightningDataModule, callbacks=()) -> None:
    """Train, from the run's last checkpoint where there is one, and leave a checkpoint of the end."""
    L.seed_everything(config.seed, verbose=False)
    trainer = build_trainer(config, callbacks)
    last = last_checkpoint(config.output)
    if last.is_file():
        print(f"continuing from {last}")
    try:
        # Our own file: besides tensors it holds the state of Lightning's loops and callbacks.
        trainer.fit(module, data, ckpt_path=last if last.is_file() else None, weights_only=False)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(
            f"{last} belongs to a model of other sizes: choose another output=…, or remove {config.output}. ({error})"
        ) from error
    trainer.save_checkpoint(last)


def test(config: DictConfig, module: L.LightningModule, data: L.LightningDataModule) -> dict[str, float]:
    """Measure a module on the test split and print a table of the numbers."""
    L.seed_everything(config.seed, verbose=False)
    trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False, default_root_dir=config.output)
    (results,) = trainer.test(module, data, verbose=False)
    width = max(map(len, results))
    print("\n".join(f"{name:<{width}}  {value:10.3f}" for name, value in results.items()))
    return results


def load_module_weights(module: L.LightningModule, checkpoint: Path) -> None:
    """The weights of a training checkpoint into a module, strictly.

    Raises FileNotFoundError when the run has left none yet.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"there is no training state {checkpoint} yet: run the script with mode=train first")
    module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"])
