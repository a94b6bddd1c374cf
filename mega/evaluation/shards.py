"""An evaluation in groups of people, each measured once, by any process, and kept on disk until all are done.

A group is a fixed range of rows. The network always sees whole groups, so rounding, and with it the last digit of every
error, depends neither on the batch size of the reading nor on the number of processes nor on interruptions.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from mega.console import Stopwatch
from mega.evaluation.test_sets import TestSet
from mega_common.files import read_arrays, whole_file, write_whole

GROUP = 16  # people


def process() -> tuple[int, int]:
    """Rank of this process and number of processes, from the variables of torchrun or SLURM."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


class Groups:
    """The finished groups of an evaluation, one file per group.

    Args:
        n_people: people in the test set.
        about: of the evaluation (`describe_run`), with all settings that the numbers and pictures depend on.

    Raises ValueError if the folder holds groups of an evaluation with other settings.
    """

    def __init__(self, folder: Path, n_people: int, about: dict):
        self.folder, self.n_people = folder, n_people
        settings = {name: about[name] for name in ("weights", "data", "options", "pictures", "protocols")}
        text = json.dumps({"group": GROUP, **settings}, indent=2, sort_keys=True, default=vars)
        path = folder / "settings.json"
        if path.is_file() and (before := path.read_text(encoding="utf-8")) != text:
            kept, now = json.loads(before), json.loads(text)
            changed = sorted(key for key in kept.keys() | now.keys() if kept.get(key) != now.get(key))
            raise ValueError(
                f"{folder} holds an interrupted evaluation with different {', '.join(changed)}: remove that folder, "
                "or choose another output=…"
            )
        write_whole(path, text.encode())

    def __len__(self) -> int:
        return -(-self.n_people // GROUP)

    def path(self, group: int) -> Path:
        return self.folder / f"group_{group:06}.npz"

    def rows(self, group: int) -> range:
        return range(group * GROUP, min((group + 1) * GROUP, self.n_people))

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Groups of a process that are not measured yet."""
        return [group for group in range(rank, len(self), world_size) if not self.path(group).is_file()]

    def measure(self, people: TestSet, evaluate: Callable[[dict, int], dict[str, Tensor]], stage: Stopwatch) -> None:
        """Measure the missing groups of this process.

        Args:
            evaluate: (batch of a group, number of the group) -> arrays to keep, see `Evaluator`.
        """
        todo = self.missing(*process())
        rows = [row for group in todo for row in self.rows(group)]
        loader = DataLoader(people.items, people.batch_size, sampler=rows, num_workers=people.workers, collate_fn=list)
        items = (item for batch in loader for item in batch)
        done = len(self) - len(self.missing())
        with tqdm(total=len(self), initial=done, unit=f" groups of {GROUP}", disable=None) as bar:
            for group in todo:
                with stage("reading"):
                    batch = default_collate(list(islice(items, len(self.rows(group)))))
                found = evaluate(batch, group)
                with whole_file(self.path(group)) as file:
                    np.savez(file, **{name: value.cpu().numpy() for name, value in found.items()})
                bar.update()

    def wait(self, patience: float = 3600.0) -> None:
        """Wait for the other processes; raises TimeoutError if none finishes a group for `patience` seconds."""
        left, since = len(self.missing()), time.monotonic()
        while left:
            time.sleep(0.2)
            now = len(self.missing())
            if now < left:
                left, since = now, time.monotonic()
            elif time.monotonic() - since > patience:
                raise TimeoutError(f"{left} groups of other processes are missing: run the same command again.")

    def load(self) -> dict[str, np.ndarray]:
        """All groups together: rows concatenated, sums over people (names starting with `vertex_`) added up."""
        parts = [read_arrays(self.path(group)) for group in range(len(self))]
        return {
            name: (sum if name.startswith("vertex_") else np.concatenate)([part[name] for part in parts])
            for name in parts[0]
        }

    def remove(self) -> None:
        shutil.rmtree(self.folder)
