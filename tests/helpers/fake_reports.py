"""Made-up reports, and the real script that compares them."""

import contextlib
import dataclasses
import json
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from mega.evaluation.report import describe
from mega.evaluation.statistics import PER_SAMPLE, Results
from mega.metrics import COCO17, Protocol

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "compare_reports.py"
PEOPLE = 60
DATA = {"name": "synthetic_test", "path": "datasets/synthetic/test/annotations.npz", "hash": "0123456789abcdef"}
METRICS = ("PVE", "MPJPE", "PA-MPJPE", "PA-PVE")


def people(count: int = PEOPLE) -> tuple[np.ndarray, np.ndarray]:
    """Two people per image."""
    return np.array([f"pictures/{i // 2:04}.jpg" for i in range(count)]), np.arange(count) % 2


def errors(seed: int = 0, shift: float = 0.0, noise: float = 5.0, count: int = PEOPLE) -> np.ndarray:
    """Errors that differ much from person to person, and little between evaluations of the same person."""
    hard = np.random.default_rng(0).gamma(4, 30, count)
    return hard + shift + noise * np.random.default_rng(seed + 1).standard_normal(count)


def columns(values: np.ndarray, protocol: str = "coco17", variant: str = "deterministic") -> dict[str, np.ndarray]:
    return {f"{variant}/{protocol}/{metric}": values for metric in METRICS}


def write(
    folder: Path,
    values: dict[str, np.ndarray],
    rows: np.ndarray | None = None,
    data: dict | None = DATA,
    protocols: tuple[Protocol, ...] = (COCO17,),
) -> Path:
    """A report without its pictures, of the people of these rows, in this order."""
    folder.mkdir()
    images, persons = people()
    rows = np.arange(PEOPLE) if rows is None else rows
    results = Results(images[rows], persons[rows], {name: column[rows] for name, column in values.items()})
    (folder / PER_SAMPLE).write_text(results.to_csv())
    if data is not None:
        known = {p.name: {"words": describe(p), **dataclasses.asdict(p)} for p in protocols}
        (folder / "summary.json").write_text(json.dumps({"about": {"data": data, "protocols": known}}))
    return folder


def compare_reports(folder: Path, *arguments: str) -> int:
    """Run the real script in `folder`; its exit status."""
    argv = patch.object(sys, "argv", [SCRIPT.name, *arguments])
    with contextlib.chdir(folder), argv, pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code
