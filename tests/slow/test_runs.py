"""Trainings by their scripts, in one folder or in a sweep: no run is lost, mixed with another, or done in name only."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf

from tests.helpers.small_trainings import ROOT, small_trainings


def command(tmp_path: Path, *options: str) -> list[str]:
    small = small_trainings(tmp_path)["tokenizer"]
    return [sys.executable, *small, "trainer.max_epochs=1", "data.batches_per_epoch=4", *options]


def run(tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(tmp_path, *options), cwd=ROOT, capture_output=True, text=True)


def test_a_sweep_trains_every_job_in_a_folder_of_its_own(tmp_path):
    sweep = [f"output={tmp_path / 'run'}", "seed=0,1", "--multirun"]
    first = run(tmp_path, *sweep)
    assert first.returncode == 0, first.stderr[-2000:]
    states = sorted((tmp_path / "run").glob("*/checkpoints/last.ckpt"))
    assert len(states) == 2
    for seed, state in enumerate(states):
        config = OmegaConf.load(state.parents[1] / "config.yaml")
        assert (config.seed, config.data.seed) == (seed, seed)
        assert config.output == config.logger.csv.save_dir == str(state.parents[1])
        assert (state.parents[1] / "csv").is_dir()
    again = run(tmp_path, *sweep)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count("nothing was trained: ") == 2
    assert sorted((tmp_path / "run").glob("*/checkpoints/last.ckpt")) == states


def test_a_sweep_on_several_processes_of_one_machine_is_refused(tmp_path):
    """Each process would be given the whole sweep, and might train another job than the first."""
    done = run(tmp_path, f"output={tmp_path / 'run'}", "seed=0,1", "trainer=ddp_sim", "--multirun")
    assert done.returncode == 1
    assert done.stderr.count("--multirun trains with one process per job") == 2


def test_one_training_at_a_time_in_a_folder(tmp_path):
    """With workers, which outlive a killed training by seconds and must not keep the next one out."""
    options = [f"output={tmp_path / 'run'}", "data.workers=1", "checkpoint_minutes=0"]
    endless = command(tmp_path, *options, "trainer.max_epochs=1000")
    first = subprocess.Popen(endless, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = tmp_path / "run" / "checkpoints" / "last.ckpt"
    while not state.exists():
        assert first.poll() is None
        time.sleep(0.1)
    second = run(tmp_path, *options)
    assert second.returncode == 1
    assert f"another training is running in {tmp_path / 'run'}: process {first.pid} on " in second.stderr
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    third = run(tmp_path, *options, "trainer.max_epochs=-1", "trainer.max_steps=0")
    assert third.returncode == 0, third.stderr[-2000:]
    assert "nothing was trained" in third.stdout


def slurm(tmp_path: Path, *options: str) -> list[subprocess.CompletedProcess]:
    """The two processes of a SLURM job."""
    full = command(tmp_path, "trainer=slurm", "trainer.accelerator=cpu", "trainer.devices=2", *options)
    step = {"JOB_ID": 77, "JOB_NAME": "x", "NTASKS": 2, "NTASKS_PER_NODE": 2, "STEP_NUM_TASKS": 2, "NODEID": 0}
    processes = []
    for rank in range(2):
        variables = {f"SLURM_{k}": str(v) for k, v in (step | {"PROCID": rank, "LOCALID": rank}).items()}
        environment = os.environ | variables | {"MASTER_ADDR": "127.0.0.1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(full, cwd=ROOT, env=environment, **pipes))
    done = [process.communicate() for process in processes]
    return [subprocess.CompletedProcess(p.args, p.returncode, *d) for p, d in zip(processes, done, strict=True)]


def test_all_processes_of_a_job_are_refused_together(tmp_path):
    """None waits for the first, which alone looks into the folder."""
    output = f"output={tmp_path / 'run'}"
    trained = slurm(tmp_path, output)
    assert [done.returncode for done in trained] == [0, 0], trained[0].stderr[-2000:]
    assert "SLURM job 77" in (tmp_path / "run" / "config.yaml").read_text().splitlines()[0]
    first, second = slurm(tmp_path, output, "seed=1")
    assert (first.returncode, second.returncode) == (1, 1)
    assert "was trained with other options:\n  data.seed: 0 -> 1\n  seed: 0 -> 1" in first.stderr
    assert "other options" not in second.stderr
