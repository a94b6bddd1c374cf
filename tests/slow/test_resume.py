"""A training that is killed, asked to stop or finds a broken state ends as if nothing had happened, to the last bit."""

import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader, TensorDataset

from mega.data.loading import training_loader
from mega.training.checkpoints import LAST, PREVIOUS, Checkpoints, WholeFiles, find_checkpoint, load_run_weights
from mega.training.vqmae import AdamWConfig, ParameterGroup
from mesh_vq_vae.lightning_module import MeshVQVAETraining
from tests.helpers.small_trainings import ROOT, make_pictures, small_trainings
from tests.helpers.toy import toy_tokenizer
from tests.slow.kill_trainings import differences, finish


def state(output: Path) -> Path:
    return output / "checkpoints" / LAST


def test_a_killed_training_ends_the_same(tmp_path):
    """Killed while it writes a state. Kills at random moments: `python -m tests.slow.kill_trainings`."""
    make_pictures(tmp_path)
    command = [*small_trainings(tmp_path)["image"], "trainer.max_epochs=2"]
    finish(command, tmp_path / "unbroken")
    killed = state(tmp_path / "killed")
    done = interrupted(signal.SIGKILL, 9, [*command, "checkpoint_minutes=0", f"output={tmp_path / 'killed'}"])
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert {path.name for path in killed.parent.iterdir()} == {PREVIOUS, f"{LAST}.tmp"}
    finish(command, tmp_path / "killed")
    assert f"resuming from {killed.with_name(PREVIOUS)}" in (tmp_path / "killed.log").read_text()
    assert differences(state(tmp_path / "unbroken"), state(tmp_path / "killed")) == []


def interrupted(number: signal.Signals, which: int, command: list[str]) -> subprocess.CompletedProcess:
    """A training that gets a signal while it writes its state number `which`, from 1."""
    full = [sys.executable, "-m", "tests.slow.interrupted", number.name, str(which), *command]
    return subprocess.run(full, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("asked_by", [signal.SIGTERM, signal.SIGUSR1])
def test_a_training_that_is_asked_to_stop_saves_first(asked_by, tmp_path):
    """With averaged weights and accumulated gradients. Then the last state is broken: the one before is resumed."""
    command = [*small_trainings(tmp_path)["pretraining"], "trainer.max_epochs=3", "ema_decay=0.9"]
    command += ["trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=1"]
    finish(command, tmp_path / "unbroken")
    # The first state is that of the start of the second epoch.
    done = interrupted(asked_by, 1, [*command, "checkpoint_minutes=60", f"output={tmp_path / 'stopped'}"])
    assert done.returncode == 128 + asked_by, done.stderr[-2000:]
    assert f"{asked_by.name}: saved step" in done.stdout
    assert "the same command resumes" in done.stdout
    last = state(tmp_path / "stopped")
    assert last.with_name(PREVIOUS).exists()
    steps = torch.load(last, weights_only=True)["global_step"]
    assert 0 < steps < 18
    last.write_bytes(last.read_bytes()[:-1000])
    finish(command, tmp_path / "stopped")
    log = (tmp_path / "stopped.log").read_text()
    assert f"{last} is broken" in log
    assert f"resuming from {last.with_name(PREVIOUS)}" in log
    assert differences(state(tmp_path / "unbroken"), last) == []
    kept = torch.load(last.with_name(PREVIOUS), weights_only=True)
    averaged, current = kept["state_dict"], kept["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)


class Line(L.LightningModule):
    """Learns a number; one validation metric is best after the first epoch, the other after the second."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(()))
        self.scores = {"val/error": [3.0, 1.0, 2.0], "val/loss": [1.0, 3.0, 2.0]}

    def training_step(self, batch, batch_idx):
        return (self.value - batch[0].mean()).square()

    def validation_step(self, batch, batch_idx):
        self.log_dict({name: scores[self.current_epoch] for name, scores in self.scores.items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


MONITOR = {"error": "val/error", "loss": "val/loss"}


def trainer_for_lines(callbacks: list[L.Callback], **options) -> L.Trainer:
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
    usual = {"accelerator": "cpu", "max_epochs": 3, "num_sanity_val_steps": 0, "plugins": [WholeFiles()]}
    return L.Trainer(callbacks=callbacks, **(usual | quiet | options))


def test_the_best_weights_by_each_metric_stay(tmp_path):
    data = DataLoader(TensorDataset(torch.arange(4.0)), 2)
    values, folder = [], tmp_path / "checkpoints"

    class Remember(L.Callback):
        def on_validation_end(self, trainer, module):
            values.append(module.value.detach().clone())

    with pytest.raises(FileNotFoundError, match="run the script with mode=train first"):
        load_run_weights(Line(), tmp_path)
    for epochs in (2, 3):  # the second run remembers how good the best weights of the first are
        checkpoints = Checkpoints(folder, monitor=MONITOR)
        trainer = trainer_for_lines([Remember(), checkpoints], max_epochs=epochs)
        trainer.fit(Line(), data, data, ckpt_path=find_checkpoint(folder), weights_only=True)
        checkpoints.save_end(trainer)
    assert len({float(value) for value in values}) == 3
    for which, value in (("best_loss", values[0]), ("best_error", values[1]), ("last", values[2])):
        line = Line()
        load_run_weights(line, tmp_path, which)
        assert torch.equal(line.value, value), which
    with pytest.raises(ValueError, match=r"export_from=best is not in .*: choose last or best_error or best_loss"):
        load_run_weights(Line(), tmp_path, "best")


def test_an_unknown_metric_is_named(tmp_path):
    data = DataLoader(TensorDataset(torch.arange(4.0)), 2)
    trainer = trainer_for_lines([Checkpoints(tmp_path, monitor={"pve": "val/PVE"})], fast_dev_run=True)
    with pytest.raises(ValueError, match=r"monitor\.pve=val/PVE is not .*; choose from val/error, val/loss"):
        trainer.fit(Line(), data, data)


def test_the_best_average_stays(tmp_path):
    data = DataLoader(TensorDataset(torch.arange(4.0)), 2)
    validated = []

    class Averaged(Line):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            validated.append(self.value.detach().clone())

    callbacks = [EMAWeightAveraging(decay=0.9), Checkpoints(tmp_path, monitor=MONITOR)]
    trainer_for_lines(callbacks, limit_val_batches=1).fit(Averaged(), data, data)
    best = torch.load(tmp_path / "best_error.ckpt", weights_only=True)["state_dict"]["value"]
    assert torch.equal(best, validated[1])


def test_codes_in_use_are_counted_with_averaged_weights(tmp_path):
    """The averaged weights leave with their buffers before the epoch's end is reported."""
    tokenizer = toy_tokenizer()
    meshes = tokenizer.template + 0.02 * torch.randn(4, 162, 3, generator=torch.Generator().manual_seed(0))
    data = DataLoader([{"vertices": mesh} for mesh in meshes], 2)
    trainer = trainer_for_lines([EMAWeightAveraging(decay=0.9)], limit_train_batches=1)
    trainer.fit(MeshVQVAETraining(tokenizer.train()), data, data)
    assert trainer.callback_metrics["val/codes_used"] > 0
    assert trainer.callback_metrics["val/perplexity"] >= 1


class Rows(L.LightningDataModule):
    """Six batches of two of the rows 0 … 11, in another order every epoch."""

    def train_dataloader(self) -> DataLoader:
        return training_loader(TensorDataset(torch.arange(12.0)), 2, self.trainer, seed=0)


@pytest.mark.parametrize("limits", [("max_steps", 15, [4, 4, 6, 9, 12, 15]), ("max_epochs", 3, [1, 1, 3])])
def test_a_run_that_has_ended_goes_on_with_a_higher_limit(limits, tmp_path):
    name, whole, parts = limits

    def rows_of(folder: Path, limit: int) -> list[list[float]]:
        seen = []

        class Watched(Line):
            def training_step(self, batch, batch_idx):
                seen.append(batch[0].tolist())
                return super().training_step(batch, batch_idx)

        checkpoints = Checkpoints(folder, minutes=60)
        trainer = trainer_for_lines([checkpoints], reload_dataloaders_every_n_epochs=1, **{name: limit})
        trainer.fit(Watched(), Rows(), ckpt_path=find_checkpoint(folder), weights_only=True)
        checkpoints.save_end(trainer)
        return seen

    in_parts = list(chain.from_iterable(rows_of(tmp_path / "parts", part) for part in parts))
    assert in_parts == rows_of(tmp_path / "whole", whole)


@pytest.mark.parametrize("schedule", ["published", "step"])
@pytest.mark.parametrize("stopped_at", [2, 6, 9])
def test_rates_and_rows_go_on_where_they_were_left(schedule, stopped_at, tmp_path):
    """In the first epoch too, whose loader is made once to count the steps and again to train from the right batch."""

    def run(folder: Path, stop: int | None) -> list[tuple]:
        seen = []

        class Watched(Line):
            def training_step(self, batch, batch_idx):
                if self.global_step == stop:
                    raise KeyError("stopped")
                seen.append((self.optimizers().param_groups[0]["lr"], *batch[0].tolist()))
                return super().training_step(batch, batch_idx)

            def configure_optimizers(self):
                arguments = {"base_lr": 0.1, "batch_size": 2, "warmup_epochs": 2, "warmup_steps": 0.1}
                return AdamWConfig(schedule=schedule, **arguments).optimizer(
                    self.trainer, [ParameterGroup([self.value])]
                )

        trainer = trainer_for_lines([Checkpoints(folder, minutes=0)], reload_dataloaders_every_n_epochs=1)
        try:
            trainer.fit(Watched(), Rows(), ckpt_path=find_checkpoint(folder), weights_only=True)
        except KeyError:
            assert stop is not None
        return seen

    whole = run(tmp_path / "whole", None)
    assert len(whole) == 18
    n_rates = len({rate for rate, *_ in whole})
    assert n_rates == 3 if schedule == "published" else n_rates > 10
    in_parts = run(tmp_path / "parts", stopped_at)
    assert len(in_parts) == stopped_at
    assert in_parts + run(tmp_path / "parts", None) == whole


def test_a_dry_run_leaves_no_best_weights(tmp_path):
    data = DataLoader(TensorDataset(torch.arange(4.0)), 2)
    trainer_for_lines([Checkpoints(tmp_path, monitor=MONITOR)], fast_dev_run=True).fit(Line(), data, data)
    assert not list(tmp_path.iterdir())


def test_broken_states_are_passed_over(tmp_path, capsys):
    assert find_checkpoint(tmp_path) is None
    for step in (1, 2):
        WholeFiles().save_checkpoint({"step": step, "weights": torch.zeros(1000)}, tmp_path / LAST)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert torch.load(find_checkpoint(tmp_path), weights_only=True)["step"] == 2
    damaged = bytearray((tmp_path / LAST).read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one bit, somewhere in the weights
    (tmp_path / LAST).write_bytes(damaged)
    found = find_checkpoint(tmp_path)
    assert torch.load(found, weights_only=True)["step"] == 1
    assert f"{tmp_path / LAST} is broken" in capsys.readouterr().out
    found.write_bytes(b"")
    with pytest.raises(ValueError, match=r"every training state in .* is broken"):
        find_checkpoint(tmp_path)
