"""What `prepare_data.py` runs."""

from __future__ import annotations

import sys

from hydra.utils import instantiate
from omegaconf import DictConfig

DATASETS = ("3dpw", "emdb", "h36m", "mpi_inf_3dhp", "bedlam_check")


def name_dataset(arguments: list[str]) -> list[str]:
    """A command line whose first word is a data set's name, as Hydra wants it: 3dpw becomes dataset=3dpw."""
    first, *others = arguments or [""]
    if not first or first.startswith("-") or "=" in first:
        return arguments
    return [f"dataset={first}", *others]


def run_preparation(config: DictConfig) -> int:
    """Do what `configs/dataset/` says of the chosen data set; the exit status, 1 if there was any problem."""
    if config.dataset is None:
        print(f"Say which data set: python prepare_data.py {' | '.join(DATASETS)}", file=sys.stderr)
        return 1
    prepare = instantiate(config.dataset, _partial_=True, _convert_="all")
    try:
        problems = prepare()
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if problems:
        print(f"{problems} problem{'s' if problems > 1 else ''}, see above.", file=sys.stderr)
    return int(problems > 0)
