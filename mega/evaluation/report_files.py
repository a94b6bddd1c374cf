"""Reports of test_mega.py, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from mega.evaluation.report import SUMMARY
from mega.evaluation.results import PER_SAMPLE, Results


@dataclass(frozen=True)
class Report:
    """A folder that test_mega.py left.

    Attributes:
        name: how it is called beside others.
        results: its errors, person by person.
        data: what it says of its test set, of which "hash" is the annotation file's; None where it says nothing.
        protocols: {name: definition, of which "words" are for people}, as far as it gives them.
    """

    name: str
    folder: Path
    results: Results
    data: dict | None = None
    protocols: dict[str, dict] = field(default_factory=dict)


def read_report(folder: str | Path, name: str | None = None) -> Report:
    """The report in a folder; without a name it is called as the folder is.

    Raises FileNotFoundError where there is no report, or ValueError that says what is wrong with a file of it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there, or no folder: give the output folder of a test_mega.py.")
    results = Results.read_csv(folder / PER_SAMPLE)
    about = _about(folder / SUMMARY)
    return Report(name or folder.resolve().name, folder, results, about.get("data"), about.get("protocols", {}))


def _about(path: Path) -> dict:
    """What a summary says of data and protocols; nothing without one, since errors alone can be compared, too."""
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text())["about"]
        # Looked up here, so that what is missing is found while it is known in which file.
        _ = about["data"]["path"], about["data"]["hash"], [entry["words"] for entry in about["protocols"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no {SUMMARY} of test_mega.py, or is damaged: {error!r}") from error
    return about
