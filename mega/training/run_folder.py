"""The folder of a run: one training at a time works in it, and a resume has the options of the start.

    runs/NAME/config.yaml   all options of the last start; the first line names its process
              .lock         locked, by the operating system, by the process that trains here

The system releases the lock when its process ends, however it ends, so no lock outlives a killed run. On NFS the lock
holds across machines; a file system without locks (some mounts of Lustre) is reported and trained on.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from mega.training.checkpoints import LAST, PREVIOUS, checkpoint_folder, find_checkpoint, say
from mega_common.files import write_whole

CONFIG = "config.yaml"
LOCK_SECONDS = 10.0  # to wait for a lock: workers of a run that was just killed hold it for up to 5 s

#: Options with which a resumed training computes the same, up to rounding; all others count.
_WITHOUT_EFFECT = re.compile(
    r"output|weights|mode|resume|export_from|export_dtype|tta|checkpoint_minutes|requeue|compile|logger\..*"
    r"|data\.(workers|cache|eval_batch_size)|training\.(train_metrics_every|channels_last)|processes"
    r"|trainer\.(accelerator|devices|num_nodes|strategy|plugins.*|log_every_n_steps|val_check_interval|profiler"
    r"|check_val_every_n_epoch|num_sanity_val_steps|enable_\w+|detect_anomaly|benchmark|deterministic)"
)
_LENGTH = re.compile(r"trainer\.(max|min)_(steps|epochs|time)")
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def use_run_folder(config: DictConfig, trainer: L.Trainer) -> Iterator[Path | None]:
    """Keep `config.output` for this training; yields the state to resume from, or None in a new run.

    Raises ValueError when another training is alive in the folder, or when the run was trained with other options and
    `config.resume` is not "force". Only the first process of several reports it; the others end with status 1.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    several, launched_here = trainer.world_size > 1, isinstance(environment, LightningEnvironment)
    is_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if several and launched_here and is_sweep:  # each of its processes would run the whole sweep
        raise ValueError(
            "--multirun trains with one process per job, or with trainer=slurm hydra/launcher=slurm: "
            "for several processes on this machine, start one job after another."
        )
    with ExitStack() as stack:
        problem = None
        if trainer.is_global_zero:
            try:
                stack.enter_context(_lock(Path(config.output)))
                _keep_options(config, trainer.world_size)
            except (OSError, ValueError) as error:
                problem = error
        if several and not launched_here:
            # All processes exist already: the others must not wait for one that has ended.
            trainer.strategy.setup_environment()  # a part of `fit`, which may come earlier
            refused = trainer.strategy.broadcast(problem is not None)
            problem = problem or (SystemExit(1) if refused else None)
        if problem is not None:
            raise problem
        yield find_checkpoint(checkpoint_folder(config.output))


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    # Not the fallback to a marker file, which would outlive a killed process.
    lock = FileLock(folder / ".lock", timeout=LOCK_SECONDS, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        text = (folder / CONFIG).read_text(encoding="utf-8") if (folder / CONFIG).exists() else ""
        found = re.match("# (process .*)", text)
        holder = found[1] if found else "a process that has just started"
        raise ValueError(
            f"another training is running in {folder}: {holder}. Wait for it or stop it, or choose another output=…"
        ) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        say(f"the file system of {folder} has no locks: make sure that no other training uses this folder")
    try:
        yield
    finally:
        lock.release()


def _keep_options(config: DictConfig, processes: int) -> None:
    """Store the options of a run, after comparing those of a resume with the stored ones."""
    path, states = Path(config.output, CONFIG), checkpoint_folder(config.output)
    options = OmegaConf.to_container(config, resolve=True, enum_to_str=True) | {"processes": processes}
    text = OmegaConf.to_yaml(OmegaConf.create(options))
    if any((states / name).is_file() for name in (LAST, PREVIOUS)):
        if path.is_file():
            try:
                stored = OmegaConf.load(path)
            except YAMLError as error:
                raise ValueError(f"{path} cannot be read; without it, a resume is not checked. ({error})") from error
            _compare(config, stored, OmegaConf.create(text))
        else:
            say(f"{path} is missing: whether {config.output} was trained with these options cannot be checked")
    job = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    first = f"# process {os.getpid()} on {socket.gethostname()}{job}, started {started}\n"
    write_whole(path, (first + text).encode())


def _compare(config: DictConfig, stored: DictConfig, now: DictConfig) -> None:
    """Report the options in which a resume differs from the run. Raises ValueError unless it is forced."""
    old, new = _flat(stored), _flat(now)
    changed = [
        f"{name}: {old.get(name, 'not set')} -> {new.get(name, 'not set')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, ...) != new.get(name, ...) and not _WITHOUT_EFFECT.fullmatch(name)
    ]
    length = [line for line in changed if _LENGTH.match(line)]
    others = [line for line in changed if line not in length]
    listed = "\n  ".join(["", *others])
    if others and config.resume != "force":
        raise ValueError(
            f"{config.output} was trained with other options:{listed}\n"
            "Add resume=force to go on with the new ones, or choose another output=… for a new run."
        )
    if length:
        say(f"another length of the training: {'; '.join(length)}. Schedules of that length apply from here on.")
    if others:
        say(f"resume=force: {config.output} goes on with other options:{listed}")


def _flat(config: DictConfig) -> dict[str, Any]:
    """{dotted name: value}; batch sizes are those of all processes, as the training sees them."""
    flat: dict[str, Any] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, dict | list) and value:
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                collect(f"{name}.{key}" if name else str(key), item)
        else:
            flat[name] = value

    collect("", OmegaConf.to_container(config))
    if flat.get("training.steps") == flat.get("trainer.max_steps"):
        flat.pop("training.steps", None)
    for name in ("data.batch_size", "training.batch_size"):
        if name in flat:
            flat[f"{name} x processes"] = flat.pop(name) * (config.get("processes") or 1)
    return flat
