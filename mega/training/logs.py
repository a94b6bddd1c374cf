"""The CSV logs of runs, read back as curves: `RUN/csv/version_*/metrics.csv`, of Lightning's CSVLogger."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class LogError(ValueError):
    """A run's logs cannot be used. The message is a sentence that names the folder or the file."""


@dataclass(frozen=True)
class Curve:
    """A logged number over the training: steps (S,) int64, increasing, and values (S,) float64, which may be NaN."""

    steps: np.ndarray
    values: np.ndarray

    def smoothed(self, weight: float) -> np.ndarray:
        """Exponential moving average (S,): each value enters with 1 - weight, 0 changes nothing.

        It is corrected for its start (Kingma & Ba 2015, section 3) and passes over values that are not finite.
        """
        average, norm, result = 0.0, 0.0, np.full(len(self.values), np.nan)
        for i, value in enumerate(self.values):
            if np.isfinite(value):
                average = weight * average + (1 - weight) * value
                norm = weight * norm + (1 - weight)
                result[i] = average / norm
        return result


def find_runs(root: Path) -> list[Path]:
    """The folders below `root`, or `root` itself, that hold CSV logs; sorted."""
    return sorted({path.parents[2] for path in root.glob("**/csv/version_*/metrics.csv")})


def read_run(folder: Path) -> dict[str, Curve]:
    """{metric: curve} of a run.

    A run that was killed and continued has several versions: where two tell of the same step, the later one holds.

    Raises LogError when the folder holds no logs, or one that is no such table.
    """
    files = sorted(folder.glob("csv/version_*/metrics.csv"), key=_version)
    if not files:
        raise LogError(f"{folder} holds no logs (csv/version_*/metrics.csv): is it the `output` of a training?")
    points: dict[str, dict[int, float]] = {}
    for file in files:
        for step, values in _read_rows(file):
            for name, value in values.items():
                points.setdefault(name, {})[step] = value
    if not points:
        raise LogError(f"The logs in {folder}/csv hold no values yet.")
    return {name: _curve(by_step) for name, by_step in sorted(points.items())}


def _curve(by_step: dict[int, float]) -> Curve:
    steps = np.array(sorted(by_step), np.int64)
    return Curve(steps, np.array([by_step[int(step)] for step in steps], np.float64))


def _version(file: Path) -> tuple[int, str]:
    number = file.parent.name.removeprefix("version_")
    return (int(number) if number.isdigit() else -1, number)


def _read_rows(file: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, {metric: value}) of each line, without a last one that was not written to its end."""
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise LogError(f"{file} cannot be read: {error}.") from error
    # A killed run leaves half a line. It may have all its commas, but its last number may lack digits.
    whole = text[: text.rfind("\n") + 1]
    header, *rows = list(csv.reader(whole.splitlines())) or [[]]
    if header and "step" not in header:
        raise LogError(f"{file} is no log of a training: its first line names no column 'step'.")
    return [_read_row(file, line, header, row) for line, row in enumerate(rows, start=2)]


def _read_row(file: Path, line: int, header: list[str], row: list[str]) -> tuple[int, dict[str, float]]:
    try:
        cells = {name: float(cell) for name, cell in zip(header, row, strict=True) if cell}
        step = int(cells.pop("step"))
    except (ValueError, KeyError) as error:
        raise LogError(
            f"{file} is damaged in line {line}: it should hold {len(header)} cells, numbers or empty, with a step. "
            "Remove that line."
        ) from error
    cells.pop("epoch", None)
    return step, cells
