"""Compare evaluation reports: which is better, by how much, and how certain that is.

    python tools/compare_reports.py outputs/test/A outputs/test/B      two or more output folders of test_mega.py
    python tools/compare_reports.py A B C names=[plain,flip,shift] baseline=flip
    python tools/compare_reports.py A variants=[deterministic,mean_of_25]    kinds of prediction within one report

    names=null             names of the reports in the table; null takes those of the folders
    baseline=0             the report that all others are compared with: its number, from 0, or its name
    variants=[deterministic]           also best_of_5, mean_of_25, likeliest_of_25 …, or patterns: 'mean_of_*'. With
                           one report, these are compared with each other
    protocols=null         coco17, mega, standard, hips, 2d, or patterns; null takes all that every report has
    metrics=[PVE,MPJPE,PA-MPJPE]       also PA-PVE and keypoints (of the protocol 2d), or patterns: '*'

A difference is the report's error minus the baseline's for the same person in the same image, averaged over the people
in all reports: negative is better. Its 95 % interval is a bootstrap over people; * marks intervals that exclude 0.
Reports on other data, or with another definition of a protocol, are refused.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import combinations, product
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from mega.config import as_option, main
from mega.console import format_number, format_table
from mega.evaluation.report import SUMMARY
from mega.evaluation.statistics import PER_SAMPLE, Results, bootstrap_interval, paired_difference
from mega_common.file_kinds import unreadable

FEWEST = 20  # with fewer people a bootstrap interval is too narrow to call anything better
NOTE = (
    "Differences are means over people of the error minus the baseline's; negative is better. Intervals are bootstraps "
    "over people; * marks a difference whose interval excludes 0. For frames of a few videos the true intervals are "
    "wider, and of twenty comparisons of equals one is marked by chance."
)

Column = tuple[str, str, str]  # variant, protocol, metric


@dataclass(frozen=True)
class Report:
    """An output folder of test_mega.py; `data` and `protocols` are those of its summary, if it has one."""

    name: str
    folder: Path
    results: Results
    data: dict | None = None
    protocols: dict[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One report (or variant) in one metric; mm, or percent of the box."""

    protocol: str
    metric: str
    variant: str
    name: str
    people: int  # with a number in every report
    mean: float
    low: float
    high: float
    difference: tuple[float, float, float] | None  # to the baseline: mean, low, high; None for the baseline itself

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return "baseline"
        mean, low, high = self.difference
        if self.people < FEWEST:
            return "too few people"
        if mean == low == high == 0:
            return "the same"
        if low <= 0 <= high:
            return "no clear difference"
        return "better" if mean < 0 else "worse"


@main("compare_reports", as_option("reports", many=True))
def run(config: DictConfig) -> None:
    folders = config.reports
    names = config.names or [Path(folder).resolve().name for folder in folders]
    if config.names is None and len(set(names)) < len(names):
        names = folders
    if len(names) != len(folders):
        raise ValueError(f"names={names} has {len(names)} entries, but there are {len(folders)} reports.")
    reports = [read_report(folder, name) for folder, name in zip(folders, names, strict=True)]
    rows, notes = compare(reports, config.variants, config.protocols, config.metrics, config.baseline)
    print(comparison_table(rows))
    print("\n" + "\n".join(f"- {note}" for note in [NOTE, *notes]))


def read_report(folder: str | Path, name: str) -> Report:
    """Raises FileNotFoundError if there is no report, ValueError if one of its files is damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there or not a folder: give an output folder of test_mega.py.")
    results, path = Results.read_csv(folder / PER_SAMPLE), folder / SUMMARY
    if not path.is_file():
        return Report(name, folder, results)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))["about"]
        _ = about["data"]["path"], about["data"]["hash"], [entry["words"] for entry in about["protocols"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, "json", f"it is no {SUMMARY} of test_mega.py, or damaged: {error!r}") from error
    return Report(name, folder, results, about["data"], about["protocols"])


def compare(
    reports: Sequence[Report],
    variants: Sequence[str] = ("deterministic",),
    protocols: Sequence[str] | None = None,
    metrics: Sequence[str] = ("PVE", "MPJPE", "PA-MPJPE"),
    baseline: int | str = 0,
) -> tuple[list[Row], list[str]]:
    """Compare reports, or the variants of a single one.

    Returns:
        The rows of the table, and notes on what was left out or could not be checked.

    Raises ValueError if the reports cannot be compared, or a name matches nothing.
    """
    notes = check_comparable(reports)
    errors, left_out = errors_of_common_people(reports)
    first, *others = errors.values()
    shared = [column for column in first if all(column in other for other in others)]
    chosen = choose(shared, variants, protocols, metrics)
    if others:
        blocks = {(p, m, v): {name: own[v, p, m] for name, own in errors.items()} for v, p, m in chosen}
        names = list(errors)
    else:
        names = list(dict.fromkeys(v for v, _, _ in chosen))
        if len(names) < 2:
            raise ValueError(
                f"There is nothing to compare: one report, and only {names[0]} of it. Give a second folder, or "
                "variants=[deterministic,mean_of_25]."
            )
        pairs = [(p, m) for p, m in dict.fromkeys(c[1:] for c in chosen) if all((v, p, m) in first for v in names)]
        blocks = {(p, m, ""): {v: first[v, p, m] for v in names} for p, m in pairs}
    baseline = str(baseline)
    if baseline not in names:
        if not baseline.isdecimal() or int(baseline) >= len(names):
            raise ValueError(f"baseline={baseline} is neither a number below {len(names)} nor one of {names}.")
        baseline = names[int(baseline)]

    rows = []
    for key, values in blocks.items():
        known = np.isfinite(list(values.values())).all(axis=0)
        values = {name: column[known] for name, column in values.items()}
        for name, own in values.items():
            difference = None if name == baseline else paired_difference(own, values[baseline])
            mean = float(own.mean()) if len(own) else np.nan
            rows.append(Row(*key, name, len(own), mean, *bootstrap_interval(own), difference))
    missing = {p for own in errors.values() for _, p, _ in own} - {p for _, p, _ in shared}
    if missing and protocols is None:
        notes.append(f"Left out, not in all reports: the protocols {', '.join(sorted(missing))}.")
    if any(v.startswith("best_of_") for v, _, _ in chosen):
        notes.append("best_of_Q is chosen with the ground truth, which no user has. Compare like with like.")
    return rows, [*left_out, *notes]


def check_comparable(reports: Sequence[Report]) -> list[str]:
    """Raise ValueError if the reports measure different things; notes on what could not be checked."""
    if not reports:
        raise ValueError("No reports: python tools/compare_reports.py FOLDER FOLDER …")
    if twice := [name for name, count in Counter(report.name for report in reports).items() if count > 1]:
        raise ValueError(f"Two reports are called {twice[0]}: give names=[…], one per report.")
    for a, b in combinations(reports, 2):
        if a.data and b.data and a.data["hash"] != b.data["hash"]:
            on = [f"{r.folder} is on {r.data['path']} (sha256 {r.data['hash']}…)" for r in (a, b)]
            raise ValueError(f"{' and '.join(on)}: errors on different data cannot be compared.")
        for name in sorted(a.protocols.keys() & b.protocols.keys()):
            if a.protocols[name] != b.protocols[name]:
                words = [f"{r.folder} ({r.protocols[name]['words']})" for r in (a, b)]
                raise ValueError(f"The protocol {name} is not the same in {' and in '.join(words)}.")
    unknown = [r.folder for r in reports if r.data is None] if len(reports) > 1 else []
    return [f"Not checked: {folder} has no summary.json that names its data." for folder in unknown]


def errors_of_common_people(reports: Sequence[Report]) -> tuple[dict[str, dict[Column, np.ndarray]], list[str]]:
    """{report: {column: errors}} of the people in all reports, in the same order; and notes on the others."""
    places = []
    for report in reports:
        people = list(zip(report.results.images.tolist(), report.results.persons.tolist(), strict=True))
        places.append({person: row for row, person in enumerate(people)})
        if len(places[-1]) < len(people):
            raise ValueError(f"{report.folder} has the same person of an image more than once: it is damaged.")
    common = [person for person in places[0] if all(person in own for own in places)]
    if not common:
        raise ValueError(f"{' and '.join(str(report.folder) for report in reports)} have nobody in common.")
    errors, notes = {}, []
    for report, own in zip(reports, places, strict=True):
        rows = [own[person] for person in common]
        columns = {tuple(name.split("/")): values[rows] for name, values in report.results.columns.items()}
        errors[report.name] = {column: values for column, values in columns.items() if len(column) == 3}
        if left_out := len(own) - len(common):
            notes.append(f"Left out, not in all reports: {left_out:,} of the {len(own):,} people of {report.name}.")
    return errors, notes


def choose(
    columns: Sequence[Column],
    variants: Sequence[str] | None,
    protocols: Sequence[str] | None,
    metrics: Sequence[str] | None,
) -> list[Column]:
    """The columns that match the given names or patterns, in the order of these."""
    if not columns:
        raise ValueError("The reports share no column VARIANT/PROTOCOL/METRIC.")
    parts = []
    for part, wanted in enumerate((variants, protocols, metrics)):
        names = list(dict.fromkeys(column[part] for column in columns))
        found = {}
        for pattern in wanted or "*":
            matches = [name for name in names if fnmatch(name.lower(), pattern.lower())]
            if not matches:
                option = ("variants", "protocols", "metrics")[part]
                raise ValueError(f"{option}: {pattern} is not in all reports. There are: {', '.join(names)}.")
            found |= dict.fromkeys(matches)
        parts.append(found)
    chosen = [(v, p, m) for p, m, v in product(parts[1], parts[2], parts[0]) if (v, p, m) in columns]
    if not chosen:
        raise ValueError(f"No column matches. There are: {', '.join('/'.join(column) for column in columns)}.")
    return chosen


def comparison_table(rows: Sequence[Row]) -> str:
    """One line per row; protocol, metric, variant and people only in the first line of each block."""
    lines, block = [], None
    for row in rows:
        names = (row.protocol, f"{row.metric}, {'% of the box' if row.protocol == '2d' else 'mm'}", row.variant)
        left, people = (("", "", ""), "") if names == block else (names, f"{row.people:,}")
        block = names
        mean, low, high = row.difference or (None, None, None)
        difference = ("", "") if mean is None else (format_number(mean, sign=True), _between(low, high, sign=True))
        mark = "*" if row.verdict in ("better", "worse") else ""
        interval = _between(row.low, row.high)
        lines.append([*left, row.name, people, format_number(row.mean), interval, *difference, mark, row.verdict])
    header = ["protocol", "metric", "variant", "report", "people", "mean", "95 % interval", "difference"]
    return format_table([*header, "95 % interval", "", "against baseline"], lines, left=4, markdown=True)


def _between(low: float, high: float, sign: bool = False) -> str:
    return f"[{format_number(low, sign=sign)}, {format_number(high, sign=sign)}]" if np.isfinite(low) else "–"


if __name__ == "__main__":
    run()
