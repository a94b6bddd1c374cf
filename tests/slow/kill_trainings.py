"""Kill trainings at random moments, restart them, and compare the end with that of an uninterrupted run.

    python -m tests.slow.kill_trainings [--stages tokenizer pretraining image] [--kills 20] [--seed 0]

Each stage is trained for some dozens of steps with small networks on made-up bodies: once without interruption, once
with SIGKILL at random moments (one in five while the script is still starting). A state is saved before every step, so
many kills hit a file being written. In the end every tensor of weights, codebook and optimizer must be the same to the
last bit. The exit status is 1 if one is not.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from tests.helpers.small_trainings import ROOT, make_pictures, small_trainings


def start(command: list[str], output: Path) -> subprocess.Popen:
    """A training in a process group of its own, so that its workers die with it."""
    log = (output.parent / f"{output.name}.log").open("a")
    # A state before every step: many kills hit a file being written.
    full = [sys.executable, *command, "checkpoint_minutes=0", f"output={output}"]
    return subprocess.Popen(full, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def finish(command: list[str], output: Path) -> float:
    """Train to the end; seconds."""
    began = time.perf_counter()
    if start(command, output).wait() != 0:
        raise RuntimeError((output.parent / f"{output.name}.log").read_text()[-3000:])
    return time.perf_counter() - began


def kill_at_random(process: subprocess.Popen, state: Path, startup: float, window: float, rng: random.Random) -> bool:
    """Kill a training after up to `window` seconds of steps, or while it starts; False if it was done before."""
    saved = state.stat().st_mtime_ns if state.exists() else 0
    if rng.random() < 0.2:
        deadline = time.monotonic() + rng.uniform(0, startup)
    else:
        while process.poll() is None and (state.stat().st_mtime_ns if state.exists() else 0) == saved:
            time.sleep(0.01)
        deadline = time.monotonic() + rng.uniform(0, window)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def tensors(value: object, name: str = "") -> dict[str, Tensor]:
    """Every tensor in a training state, named by where it stands."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: tensor for k, v in items for key, tensor in tensors(v, f"{name}/{k}").items()}


def differences(a: Path, b: Path) -> list[str]:
    """Names of the tensors in which two training states differ by a bit."""
    one, two = (tensors(torch.load(path, weights_only=True)) for path in (a, b))
    same = {name for name in one.keys() & two.keys() if torch.equal(one[name], two[name])}
    return sorted((one.keys() | two.keys()) - same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["tokenizer", "pretraining", "image"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    broken = False
    print(f"{'stage':<12} {'kills':>5} {'starts':>6} {'minutes':>7}  end")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        commands = small_trainings(folder)
        if "image" in options.stages:
            make_pictures(folder)
        for stage in options.stages:
            unbroken, killed = folder / f"{stage}_unbroken", folder / f"{stage}_killed"
            seconds = finish(commands[stage], unbroken)
            startup = seconds / 2  # about: imports, body, tokens
            began, kills, starts = time.perf_counter(), 0, 0
            while True:
                starts += 1
                process = start(commands[stage], killed)
                if kills >= options.kills:
                    if process.wait() != 0:
                        raise RuntimeError((folder / f"{killed.name}.log").read_text()[-3000:])
                    break
                window = (seconds - startup) / (options.kills / 2)
                if not kill_at_random(process, killed / "checkpoints" / "last.ckpt", startup, window, rng):
                    break
                kills += 1
            found = differences(unbroken / "checkpoints" / "last.ckpt", killed / "checkpoints" / "last.ckpt")
            broken |= bool(found) or kills < options.kills
            end = f"{len(found)} tensors differ, e.g. {found[0]}" if found else "identical to the last bit"
            print(f"{stage:<12} {kills:>5} {starts:>6} {(time.perf_counter() - began) / 60:>7.1f}  {end}", flush=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
