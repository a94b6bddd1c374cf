"""An evaluation in groups of people: each is computed once, by any process, and kept until all are there.

A group is a fixed run of rows. The network always sees whole groups, so its rounding, and with it the last digit of
every error, depends neither on how many pictures are read at a time nor on processes nor on interruptions.
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
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from mega_common.atomic_io import whole_file, write_whole

GROUP = 16  # people
_SETTINGS = "settings.json"


def process() -> tuple[int, int]:
    """Number of this process and how many there are, as torchrun or SLURM say."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


class Groups:
    """The finished groups of an evaluation, on disk.

    Args:
        folder: for a file a group.
        n_rows: people.
        settings: what the numbers depend on; numbers of other settings are not mixed with these.

    Raises ValueError when the folder holds groups of an evaluation with other settings.
    """

    def __init__(self, folder: Path, n_rows: int, settings: dict):
        self.folder, self.n_rows = folder, n_rows
        text = json.dumps(settings, indent=2, sort_keys=True)
        path = folder / _SETTINGS
        if path.is_file() and (before := path.read_text()) != text:
            kept, now = json.loads(before), json.loads(text)
            changed = sorted(key for key in kept.keys() | now.keys() if kept.get(key) != now.get(key))
            raise ValueError(
                f"{folder} holds an interrupted evaluation with another {', '.join(changed)}: remove that folder, "
                "or choose another output=…"
            )
        write_whole(path, text.encode())

    def __len__(self) -> int:
        return -(-self.n_rows // GROUP)

    def path(self, group: int) -> Path:
        return self.folder / f"group_{group:06}.npz"

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Groups of a process that are not there yet."""
        return [group for group in range(rank, len(self), world_size) if not self.path(group).is_file()]

    def save(self, group: int, found: dict[str, Tensor]) -> None:
        arrays = {name: value.cpu().numpy() for name, value in found.items()}
        with whole_file(self.path(group)) as file:
            np.savez(file, **arrays)

    def wait(self, patience: float = 3600.0) -> None:
        """Until the other processes have done theirs; raises TimeoutError if none has for `patience` seconds."""
        left, since = len(self.missing()), time.monotonic()
        while left:
            time.sleep(0.2)
            now = len(self.missing())
            if now < left:
                left, since = now, time.monotonic()
            elif time.monotonic() - since > patience:
                raise TimeoutError(f"{left} groups of other processes did not come; the same command goes on with them")

    def load(self) -> dict[str, np.ndarray]:
        """All groups together: rows one after the other, sums (names that begin with `vertex_`) added up."""
        parts = []
        for group in range(len(self)):
            with np.load(self.path(group), allow_pickle=False) as file:
                parts.append({name: file[name] for name in file.files})
        join = {True: lambda arrays: np.sum(arrays, axis=0), False: np.concatenate}
        return {name: join[name.startswith("vertex_")]([part[name] for part in parts]) for name in parts[0]}

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def run_groups(
    groups: Groups,
    items: Dataset,
    measure: Callable[[dict, int], dict[str, Tensor]],
    device: torch.device,
    batch_size: int,
    workers: int,
    stage: Callable,
) -> None:
    """Measure this process's groups that are not there yet.

    Args:
        batch_size: how many people a worker reads at a time.
        stage: `stage(name)` is a context that takes the time.
    """
    todo = groups.missing(*process())
    rows = [row for group in todo for row in range(group * GROUP, min((group + 1) * GROUP, groups.n_rows))]
    loader = DataLoader(items, batch_size, sampler=rows, num_workers=workers, collate_fn=list)
    one_by_one = (item for batch in loader for item in batch)
    done = len(groups) - len(groups.missing())
    with tqdm(total=len(groups), initial=done, unit=f" groups of {GROUP}", disable=None) as bar:
        for group in todo:
            size = min(GROUP, groups.n_rows - group * GROUP)
            with stage("reading"):
                batch = default_collate(list(islice(one_by_one, size)))
            found = measure({name: value.to(device) for name, value in batch.items()}, group)
            groups.save(group, found)
            bar.update()
