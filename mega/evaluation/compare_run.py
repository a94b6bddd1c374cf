"""What `compare_reports.py` runs: reports side by side, printed, and where asked for, written."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from mega.evaluation.compare import Comparison, compare
from mega.evaluation.compare_plot import draw
from mega.evaluation.compare_text import comparison_json, comparison_markdown, comparison_text
from mega.evaluation.plots import to_png
from mega.evaluation.report_files import Report, read_report
from mega.launch import as_list
from mesh_vq_vae.whole_files import write_whole


def name_reports(arguments: Sequence[str]) -> list[str]:
    """A command line whose bare words are folders of reports, as Hydra wants it: A B becomes reports=["A","B"].

    A folder that is there is taken for one even if its name has a "=".
    """
    folders, others = [], []
    for word in arguments:
        is_folder = not word.startswith("-") and ("=" not in word or Path(word).is_dir())
        (folders if is_folder else others).append(word)
    if not folders:
        return others
    quoted = ",".join('"' + folder.replace('"', '\\"') + '"' for folder in folders)
    return [f"reports=[{quoted}]", *others]


def run_comparison(config: DictConfig) -> int:
    """Compare what `configs/compare_reports.yaml` says; the exit status, 1 if it cannot be compared."""
    try:
        folders = as_list(config.reports) or []
        names = as_list(config.names) or _names(folders)
        if len(names) != len(folders):
            raise ValueError(f"names={names} are {len(names)}, but there are {len(folders)} reports.")
        reports = [read_report(folder, name) for folder, name in zip(folders, names, strict=True)]
        asked = {name: as_list(config[name]) for name in ("variants", "protocols", "metrics")}
        comparison = compare(reports, **asked, baseline=config.baseline)
        print(comparison_text(comparison))
        if config.output is not None:
            _write(Path(config.output), comparison, reports)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _names(folders: Sequence[str]) -> list[str]:
    """The folders' own names, or, where two are the same, all paths."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else list(folders)


def _write(folder: Path, comparison: Comparison, reports: Sequence[Report]) -> None:
    command = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    files = {
        "comparison.png": to_png(draw(comparison)),
        "comparison.json": comparison_json(comparison, reports, command).encode(),
        "comparison.md": comparison_markdown(comparison, reports, command, "comparison.png").encode(),
    }
    for name, data in files.items():
        write_whole(folder / name, data)
    print(f"\nwritten: {folder}/comparison.md, comparison.json and comparison.png")
