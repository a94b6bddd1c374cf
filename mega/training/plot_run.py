"""What `plot_training.py` runs: a picture with the curves of runs, and a table of their last and best values."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig
from tqdm import tqdm

from mega.launch import as_list
from mega.training.logs import Curve, LogError, find_runs, read_run
from mega.training.plots import DPI, Series, choose, draw, group, title_and_unit
from mesh_vq_vae.whole_files import whole_file

FORMATS = (".png", ".pdf", ".svg")
_HIGHER_IS_BETTER = ("accuracy", "codes_used", "perplexity", "per_second")


def run_plot(config: DictConfig) -> int:
    """Draw and print what `configs/plot_training.yaml` says; the exit status: 1 when a run could not be used."""
    try:
        output = _checked_output(config)
        folders = _folders(config)
        runs = _read_runs(folders)
        panels = choose(group(list(runs.values())), as_list(config.metrics) or [])
        names = short_names(list(runs))
        if panels:
            _write(draw(panels, names, config.smooth, config.log, config.columns), output)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if table := format_table(panels, names):
        print(table)
    if panels:
        print(f"{len(panels)} panels of {len(runs)} of {len(folders)} runs in {output}")
    return int(len(runs) < len(folders))


def _read_runs(folders: Sequence[Path]) -> dict[Path, dict[str, Curve]]:
    """The logs of those runs that have usable ones; of the others it is said what is wrong."""
    runs = {}
    for folder in tqdm(folders, "logs", unit="run", disable=None, leave=False):
        try:
            runs[folder] = read_run(folder)
        except LogError as error:
            tqdm.write(str(error), file=sys.stderr)
    return runs


def _checked_output(config: DictConfig) -> Path:
    output = Path(config.output)
    if output.suffix.lower() not in FORMATS:
        raise ValueError(f"output={output} is no picture's name: end it on {', '.join(FORMATS)}.")
    if not (isinstance(config.smooth, int | float) and 0 <= config.smooth < 1):
        raise ValueError(f"smooth={config.smooth} is not a number from 0 up to, but without, 1.")
    if not (isinstance(config.columns, int) and config.columns > 0):
        raise ValueError(f"columns={config.columns} is no number of columns: give 1 or more.")
    if not isinstance(config.log, bool):
        raise ValueError(f"log={config.log} is neither true nor false.")
    return output


def _folders(config: DictConfig) -> list[Path]:
    if given := as_list(config.runs):
        return list(dict.fromkeys(Path(run) for run in given))
    if found := find_runs(Path(config.root)):
        return found
    raise ValueError(f"No run below {config.root}/ has logs: say where they are, runs=[FOLDER,…] or root=FOLDER.")


def short_names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders, with as many of their parents as it takes to tell them apart."""
    longest = max((len(folder.parts) for folder in folders), default=1)
    names = [folder.name for folder in folders]
    for depth in range(1, longest + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def best_index(quantity: str, values: np.ndarray) -> int:
    """Where the best of some values is that are not all NaN: the lowest, of accuracies and the like the highest."""
    higher = any(name in quantity for name in _HIGHER_IS_BETTER)
    return int(np.nanargmax(values) if higher else np.nanargmin(values))


def _write(figure: Figure, output: Path) -> None:
    with whole_file(output) as file:
        figure.savefig(file, format=output.suffix[1:].lower(), dpi=DPI)


def format_table(panels: dict[str, list[Series]], names: Sequence[str]) -> str:
    """Last and best value of each validated quantity of each run, and their steps; empty when there is none."""
    rows = [
        (names[one.run], *title_and_unit(quantity), *_last_and_best(quantity, one.curve))
        for quantity, series in panels.items()
        for one in series
        if one.part == "val" and np.isfinite(one.curve.values).any()
    ]
    if not rows:
        return ""
    header = ("run", "validation", "unit", "last", "at step", "best", "at step")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def _last_and_best(quantity: str, curve: Curve) -> tuple[str, str, str, str]:
    best = best_index(quantity, curve.values)
    return tuple(text for i in (-1, best) for text in (f"{curve.values[i]:.4g}", f"{int(curve.steps[i]):,}"))
