"""A run's folder is used by one training at a time, and resumed with the options of its start only."""

import errno
import os
import signal
import subprocess
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, TensorDataset

from mega.config import compose
from mega.training import run_folder
from mega.training.checkpoints import LAST, Checkpoints, ConfiguredOptimizer, WholeFiles, find_checkpoint
from mega.training.run_folder import CONFIG, use_run_folder
from mega.training.trainer import SLURMJob, build_trainer

ROOT = Path(__file__).parents[2]
HOLD = """
import filelock, sys
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""
composed = cache(lambda *options: compose("train_mega", options))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.0)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the run, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def start(folder: Path, *options: str, processes: int = 1) -> Path | None:
    """What a training script does first and last in its folder; the state that it resumes from."""
    strategy = SimpleNamespace(cluster_environment=LightningEnvironment())
    trainer = SimpleNamespace(strategy=strategy, world_size=processes, is_global_zero=True)
    config = composed(*(option for option in options if not option.startswith("resume="))).copy()
    config.output, config.resume = str(folder), "force" if "resume=force" in options else "auto"
    with use_run_folder(config, trainer) as last:
        return last


def save_state(folder: Path) -> Path:
    path = folder / "checkpoints" / LAST
    WholeFiles().save_checkpoint({"weights": torch.zeros(3)}, path)
    return path


def test_a_second_training_is_refused_while_the_first_is_alive(tmp_path, holder):
    with pytest.raises(ValueError, match=f"another training is running in {tmp_path}: a process that has just started"):
        start(tmp_path)
    (tmp_path / CONFIG).write_text("# process 12 on gpu-7, SLURM job 55, started 2026-01-01 10:00:00\nseed: 0\n")
    with pytest.raises(ValueError, match=r"process 12 on gpu-7, SLURM job 55, started .*\. Wait for it or stop it"):
        start(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert start(tmp_path) is None
    assert (tmp_path / CONFIG).read_text().startswith(f"# process {os.getpid()} on ")


def test_a_refused_training_changes_nothing(tmp_path):
    save_state(tmp_path)
    start(tmp_path)
    before = (tmp_path / CONFIG).read_text()
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        start(tmp_path, "seed=1")
    assert (tmp_path / CONFIG).read_text() == before


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for _ in range(2):  # no marker is left that would keep the second out
        assert start(tmp_path) is None
        assert f"the file system of {tmp_path} has no locks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["data.workers=4"],
        ["logger=wandb"],
        ["checkpoint_minutes=1", "requeue=false", "weights=other.safetensors"],
        ["trainer=ddp_sim"],
        ["trainer.log_every_n_steps=3"],
    ],
)
def test_options_without_effect_may_change(options, tmp_path, capsys):
    start(tmp_path)
    state = save_state(tmp_path)
    same = ["trainer.precision=auto"] if options == ["trainer=ddp_sim"] else []
    assert start(tmp_path, *options, *same) == state
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("seed=1", "seed: 0 -> 1"),
        ("data.batch_size=16", "data.batch_size x processes: 32 -> 16"),
        ("training.base_lr=1e-3", "training.base_lr: 0.006 -> 0.001"),
        ("data.folder=elsewhere", "data.folder: datasets/synthetic -> elsewhere"),
        ("model.dim=64", "model.dim: "),
        ("backbone=efficientnet_lite0", "backbone._target_: mega.backbones.BlazePose -> "),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches: 1 -> 2"),
        ("+trainer.sync_batchnorm=true", "trainer.sync_batchnorm: not set -> True"),
        ("data.augmentation=null", "data.augmentation: not set -> None"),
        ("training.steps=100", "training.steps: not set -> 100"),
    ],
)
def test_a_resume_with_other_options_is_refused_unless_forced(option, line, tmp_path, capsys):
    start(tmp_path)
    state = save_state(tmp_path)
    with pytest.raises(ValueError, match="was trained with other options") as error:
        start(tmp_path, option)
    assert f"\n  {line}" in str(error.value)
    assert "Add resume=force to go on" in str(error.value)
    assert start(tmp_path, option, "resume=force") == state
    assert f"\n  {line}" in capsys.readouterr().out
    assert start(tmp_path, option) == state  # now these are the options of the run
    with pytest.raises(ValueError, match="was trained with other options"):
        start(tmp_path)


def test_a_new_run_may_have_any_options(tmp_path):
    start(tmp_path)
    assert start(tmp_path, "seed=1") is None  # the first start has saved no state


def test_a_longer_training_is_announced(tmp_path, capsys):
    start(tmp_path)
    state = save_state(tmp_path)
    assert start(tmp_path, "trainer.max_steps=20000") == state
    assert "another length of the training: trainer.max_steps: 11000 -> 20000." in capsys.readouterr().out


def test_the_same_batch_on_other_devices_is_the_same_training(tmp_path):
    start(tmp_path, "data.batch_size=32")
    state = save_state(tmp_path)
    assert start(tmp_path, "data.batch_size=16", processes=2) == state
    with pytest.raises(ValueError, match=r"data\.batch_size x processes: 32 -> 64"):
        start(tmp_path, "data.batch_size=32", processes=2)


def test_a_run_without_stored_options_says_so(tmp_path, capsys):
    state = save_state(tmp_path)
    assert start(tmp_path, "seed=1") == state
    assert f"{tmp_path / CONFIG} is missing" in capsys.readouterr().out


class Line(L.LightningModule):
    def __init__(self, rate: float, decay: float, falls: bool):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(()))
        self.rate, self.decay, self.falls, self.seen = rate, decay, falls, []

    def training_step(self, batch, batch_idx):
        group = self.optimizers().param_groups[0]
        self.seen.append((group["lr"], group["weight_decay"]))
        return (self.value - batch[0].mean()).square()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.rate, weight_decay=self.decay)
        if not self.falls:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize("falls", [False, True])
def test_a_forced_resume_has_the_new_learning_rate(falls, tmp_path):
    """Without a word, the stored state would bring the old one back."""
    data, seen = DataLoader(TensorDataset(torch.arange(4.0)), 2), []
    for epochs, rate, decay, callbacks in ((1, 0.1, 0.0, []), (2, 0.01, 0.5, [ConfiguredOptimizer()])):
        checkpoints, line = Checkpoints(tmp_path), Line(rate, decay, falls)
        quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
        trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[*callbacks, checkpoints], **quiet)
        trainer.fit(line, data, ckpt_path=find_checkpoint(tmp_path), weights_only=True)
        checkpoints.save_end(trainer)
        seen += line.seen
    shares = [1, 1 / 2, 1 / 3, 1 / 4] if falls else [1] * 4
    rates, decays = zip(*seen, strict=True)
    assert rates == pytest.approx([base * share for base, share in zip([0.1, 0.1, 0.01, 0.01], shares, strict=True)])
    assert decays == (0, 0, 0.5, 0.5)


def environment_of(*options: str) -> object:
    return build_trainer(composed(*options, "trainer.precision=32-true"), logger=False).strategy


def test_variables_that_slurm_has_left_have_no_effect(monkeypatch):
    """Of `salloc -n 8`, then a shell: Lightning alone would wait for seven other processes."""
    for name, value in {"JOB_ID": 7, "JOB_NAME": "work", "NTASKS": 8, "PROCID": 3, "NODEID": 0, "LOCALID": 3}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    strategy = environment_of("trainer=ddp_sim")
    assert isinstance(strategy.cluster_environment, LightningEnvironment)
    assert (strategy.global_rank, strategy.world_size) == (0, 2)
    monkeypatch.setattr(rank_zero_only, "rank", 3)  # read from SLURM_PROCID when Lightning is imported
    trainer = build_trainer(composed("trainer=cpu", "trainer.precision=32-true"), logger=False)
    assert (trainer.global_rank, trainer.world_size, rank_zero_only.rank) == (0, 1, 0)


def test_torchrun_and_slurm_are_used_where_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # the trainers set it
    slurm = ("trainer=slurm", "trainer.accelerator=cpu", "trainer.devices=2")
    with pytest.raises(ValueError, match=r"srun has started, which sets SLURM_PROCID, .*, or choose trainer=cpu"):
        environment_of(*slurm)
    for name, value in {"NTASKS": 2, "NTASKS_PER_NODE": 2, "STEP_NUM_TASKS": 2, "PROCID": 1, "LOCALID": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_NODEID", "0")
    strategy = environment_of(*slurm)
    assert isinstance(strategy.cluster_environment, SLURMJob)
    assert strategy.cluster_environment.auto_requeue is False
    assert (strategy.global_rank, strategy.world_size) == (1, 2)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match=r"trainer=slurm: You set `--ntasks=2`.*--ntasks-per-node"):
        environment_of(*slurm)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert isinstance(environment_of("trainer=ddp_sim").cluster_environment, TorchElasticEnvironment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_a_missing_gpu_is_a_sentence(trainer):
    with pytest.raises(ValueError, match=r"a GPU was asked for .*trainer=cpu trains without one\.$"):
        build_trainer(composed(f"trainer={trainer}"), logger=False)


@pytest.mark.parametrize("path", sorted((ROOT / "mega" / "training").glob("*.py")), ids=lambda path: path.stem)
def test_trainings_can_be_imported_on_windows(path, monkeypatch):
    """Where these signals do not exist."""
    for name in ("SIGUSR1", "SIGUSR2"):
        monkeypatch.delattr(signal, name, raising=False)
    spec = spec_from_file_location(f"{path.stem}_on_windows", path)
    monkeypatch.setitem(sys.modules, spec.name, module_from_spec(spec))
    spec.loader.exec_module(sys.modules[spec.name])
