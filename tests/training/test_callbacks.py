"""Callbacks and loggers of trainings: time spent waiting for data, losses that are not finite, pictures."""

import csv
import importlib.util
import os
import socket
import sys
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, Dataset

from mega.config import compose
from mega.training import callbacks as watching
from mega.training.callbacks import DataWait, StopOnNaN, build_loggers, log_picture

ROOT = Path(__file__).parents[2]


class Clock:
    """Replaces the module `time`: only `sleep` lets time pass, however busy the machine is."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


clock = Clock()


@pytest.fixture(autouse=True)
def _still_clock(monkeypatch):
    monkeypatch.setattr(watching, "time", clock)


class Numbers(Dataset):
    """Items {"x": (2,)}, each of which takes `seconds` to load; item `bad` is infinite."""

    def __init__(self, n: int, seconds: float = 0.0, bad: int | None = None):
        self.n, self.seconds, self.bad = n, seconds, bad

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        clock.sleep(self.seconds)
        return {"x": torch.full((2,), float("inf") if i == self.bad else float(i)), "name": f"item {i}"}


class Line(L.LightningModule):
    """A model of one layer whose steps, validations and checkpoints take the given time, in seconds."""

    def __init__(self, step_seconds: float = 0.0, validation_seconds: float = 0.0, save_seconds: float = 0.0):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(self.layer.weight)
        self.step_seconds, self.validation_seconds, self.save_seconds = step_seconds, validation_seconds, save_seconds

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        clock.sleep(self.step_seconds)
        loss = self.layer(batch["x"]).square().mean()
        self.log("train/square", loss)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        clock.sleep(self.validation_seconds)
        self.log("val/square", self.layer(batch["x"]).square().mean())

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        clock.sleep(self.save_seconds)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-6)


def trainer_for(folder: Path, *callbacks: L.Callback, **options) -> L.Trainer:
    options = {"logger": CSVLogger(folder, "csv"), "log_every_n_steps": 1, "max_epochs": 1} | options
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **options, **quiet)


def logged(folder: Path) -> dict[str, list[float]]:
    """{metric: its values, in the order of the steps} of a run's CSV log."""
    (path,) = folder.glob("csv/version_*/metrics.csv")
    curves: dict[str, list[float]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    curves.setdefault(name, []).append(float(value))
    return curves


@pytest.mark.parametrize(("loading", "working"), [(8.0, 2.0), (0.0, 8.0)])
def test_share_of_waiting(tmp_path, loading, working):
    trainer = trainer_for(tmp_path, DataWait(steps=10), enable_checkpointing=False)
    trainer.fit(Line(working), DataLoader(Numbers(12, loading), batch_size=1))
    curves = logged(tmp_path)
    waited = curves["train/data_wait_percent"][-1]
    assert waited == pytest.approx(100 * loading / (loading + working))
    assert curves["train/steps_per_second"][-1] == pytest.approx(1 / (loading + working))
    assert len(curves["train/data_wait_percent"]) == 12


def test_validation_and_checkpoints_are_not_waiting(tmp_path):
    """Both after some of the steps, whose loading is then not counted either."""
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    trainer = trainer_for(tmp_path, DataWait(steps=100), checkpoints, val_check_interval=4, max_epochs=2)
    module = Line(step_seconds=6.0, validation_seconds=40.0, save_seconds=40.0)
    trainer.fit(module, DataLoader(Numbers(12, 2.0), batch_size=1), DataLoader(Numbers(1), batch_size=1))
    assert len(list(tmp_path.glob("*.ckpt"))) == 8
    assert len(logged(tmp_path)["val/square"]) == 6
    assert logged(tmp_path)["train/data_wait_percent"][-1] == pytest.approx(25)


def test_steps_of_several_batches_are_steps(tmp_path):
    trainer = trainer_for(tmp_path, DataWait(), accumulate_grad_batches=3, enable_checkpointing=False)
    trainer.fit(Line(2.0), DataLoader(Numbers(12), batch_size=1))
    assert logged(tmp_path)["train/steps_per_second"][-1] == pytest.approx(1 / (3 * 2.0))


def test_stop_at_a_loss_that_is_not_finite(tmp_path):
    folder, checkpoints = tmp_path / "run", ModelCheckpoint(tmp_path, every_n_train_steps=1)
    trainer = trainer_for(tmp_path, StopOnNaN(folder), checkpoints)
    module = Line()
    with pytest.raises(FloatingPointError) as error:
        trainer.fit(module, DataLoader(Numbers(20, bad=7), batch_size=2))
    (path,) = folder.iterdir()
    assert path.name == "nan_batch_step_000003_rank0.pt"
    for part in ("loss is inf at step 3, epoch 0", "train/square inf", str(path), "weights are still finite"):
        assert part in str(error.value)
    kept = torch.load(path, weights_only=True)
    assert kept.keys() == {"batch", "step", "epoch", "batch_idx", "rank"}
    assert (kept["step"], kept["epoch"], kept["batch_idx"], kept["rank"]) == (3, 0, 3, 0)
    assert kept["batch"]["name"] == ["item 6", "item 7"]
    assert torch.equal(kept["batch"]["x"], torch.tensor([[6.0, 6.0], [torch.inf, torch.inf]]))
    assert all(weights.isfinite().all() for weights in module.parameters())
    (checkpoint,) = tmp_path.glob("*.ckpt")
    assert "step=3" in checkpoint.name


def train_until_not_finite(rank: int, folder: Path, port: int) -> None:
    """One of two processes; its error message goes to `folder/rank0.txt` or `folder/rank1.txt`."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    options = {"strategy": "ddp", "devices": 2, "enable_checkpointing": False, "logger": False}
    trainer = trainer_for(folder, StopOnNaN(folder / "run"), **options)
    with pytest.raises(FloatingPointError) as error:
        trainer.fit(Line(), DataLoader(Numbers(20, bad=7), batch_size=2))
    (folder / f"rank{rank}.txt").write_text(str(error.value))


@pytest.mark.slow
def test_all_processes_stop_when_the_loss_of_one_is_not_finite(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_until_not_finite, (tmp_path, port), nprocs=2)
    (path,) = (tmp_path / "run").iterdir()
    rank = torch.load(path, weights_only=True)["rank"]
    assert f"The batch is saved in {path}" in (tmp_path / f"rank{rank}.txt").read_text()
    assert "the loss of another process is not finite at step" in (tmp_path / f"rank{1 - rank}.txt").read_text()


def test_the_message_distinguishes_broken_weights_from_a_bad_batch(tmp_path):
    module = Line()
    torch.nn.init.constant_(module.layer.bias, torch.nan)
    with pytest.raises(match=r"not finite before this step \(such as layer.bias\)"):
        trainer_for(tmp_path, StopOnNaN(tmp_path)).fit(module, DataLoader(Numbers(2)))


def test_loggers(tmp_path, monkeypatch):
    config = compose("train_mega", [f"output={tmp_path}"])
    assert [type(logger) for logger in build_loggers(config.logger)] == [CSVLogger, TensorBoardLogger]
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mega-hmr\[wandb\]'"):
        build_loggers(compose("train_mega", [f"output={tmp_path}", "logger=wandb"]).logger)


def test_pictures_go_to_the_folder_and_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = np.zeros((4, 6, 3), np.uint8)
    picture[..., 0] = 200  # red
    trainer = trainer_for(tmp_path, logger=[CSVLogger(tmp_path), TensorBoardLogger(tmp_path, "board")])
    log_picture(trainer, tmp_path / "panels", picture)
    trainer.loggers[1].experiment.flush()
    assert np.array_equal(cv2.imread(str(tmp_path / "panels" / "step_000000.png"))[..., ::-1], picture)
    events = EventAccumulator(trainer.loggers[1].log_dir).Reload()
    (image,) = events.Images("panels")
    assert np.array_equal(cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), 1)[..., ::-1], picture)


def test_pictures_go_to_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = compose("train_mega", [f"output={tmp_path}", "logger=wandb", "logger.wandb.offline=true"])
    trainer = trainer_for(tmp_path, logger=build_loggers(config.logger))
    log_picture(trainer, tmp_path / "panels", np.zeros((4, 6, 3), np.uint8))
    trainer.loggers[-1].experiment.finish()
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/panels_0_*.png"))) == 1
