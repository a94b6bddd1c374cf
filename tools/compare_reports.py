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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import combinations, product
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from mega.config import as_option, main
from mega.console import format_number, format_table
from mega.evaluation.report import SUMMARY, format_interval
from mega.evaluation.statistics import PER_SAMPLE, Results, bootstrap_interval, paired_difference
from mega_common.file_kinds import unreadable

FEWEST = 20  # with fewer people a bootstrap interval is too narrow to call anything better
NOTE = (
    "Differences are means over people of the error minus the baseline's; negative is better. Intervals are bootstraps "
    "over people; * marks a difference whose interval excludes 0. For frames of a few videos the true intervals are "
    "wider, and of twenty comparisons of equals one is marked by chance."
)


@dataclass(frozen=True)
class Report:
    """An output folder of test_mega.py; without a summary, its data are None and its protocols empty."""

    name: str
    folder: Path
    people: dict[tuple[str, int], int]  # (image, number of the person in it) -> row
    errors: dict[tuple[str, str, str], np.ndarray]  # (variant, protocol, metric) -> one number per row
    data: dict | None
    protocols: dict[str, str]  # name -> definition in words


@dataclass(frozen=True)
class Row:
    """One report (or variant) in one metric; mm, or percent of the box."""

    variant: str
    protocol: str
    metric: str
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
    people = {person: row for row, person in enumerate(zip(results.images, results.persons, strict=True))}
    if len(people) < len(results):
        raise ValueError(f"{folder} has the same person of an image more than once: it is damaged.")
    errors = {tuple(name.split("/")): values for name, values in results.columns.items() if name.count("/") == 2}
    if not path.is_file():
        return Report(name, folder, people, errors, None, {})
    try:
        about = json.loads(path.read_text(encoding="utf-8"))["about"]
        data = {key: about["data"][key] for key in ("path", "hash")}
        protocols = {name: protocol["words"] for name, protocol in about["protocols"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, "json", f"it is no {SUMMARY} of test_mega.py, or damaged: {error!r}") from error
    return Report(name, folder, people, errors, data, protocols)


def compare(
    reports: Sequence[Report],
    variants: Sequence[str] = ("deterministic",),
    protocols: Sequence[str] | None = None,
    metrics: Sequence[str] = ("PVE", "MPJPE", "PA-MPJPE"),
    baseline: int | str = 0,
) -> tuple[list[Row], list[str]]:
    """Compare reports, or the variants of a single one, on the people in all of them.

    Returns:
        The rows of the table, and notes on what was left out or could not be checked.

    Raises ValueError if the reports cannot be compared, or a name matches nothing.
    """
    check_comparable(reports)
    notes = []
    if len(reports) == 1:
        reports, variants = variants_of(reports[0], variants), "*"
    else:
        notes += [f"Not checked: {r.folder} has no summary.json that names its data." for r in reports if not r.data]
    common = [person for person in reports[0].people if all(person in report.people for report in reports)]
    if not common:
        raise ValueError(f"{' and '.join(str(report.folder) for report in reports)} have nobody in common.")
    for report in reports:
        if left_out := len(report.people) - len(common):
            notes.append(
                f"Left out, not in all reports: {left_out:,} of the {len(report.people):,} people of {report.name}."
            )
    columns = [column for column in reports[0].errors if all(column in report.errors for report in reports)]
    if not columns:
        raise ValueError("The reports share no column VARIANT/PROTOCOL/METRIC.")
    there = [dict.fromkeys(parts) for parts in zip(*columns, strict=True)]
    missing = {protocol for report in reports for _, protocol, _ in report.errors} - {*there[1], "2d"}
    if missing and protocols is None:
        notes.append(f"Left out, not in all reports: the protocols {', '.join(sorted(missing))}.")
    chosen = product(
        matching("protocols", there[1], protocols or "*"),
        matching("metrics", there[2], metrics),
        matching("variants", there[0], variants),
    )
    chosen = [(variant, p, m) for p, m, variant in chosen if (variant, p, m) in columns]
    if not chosen:
        raise ValueError(f"No column matches. There are: {', '.join('/'.join(column) for column in columns)}.")

    names, baseline = [report.name for report in reports], str(baseline)
    if baseline not in names:
        if not baseline.isdecimal() or int(baseline) >= len(names):
            raise ValueError(f"baseline={baseline} is neither a number below {len(names)} nor one of {names}.")
        baseline = names[int(baseline)]
    rows = []
    for column in chosen:
        errors = np.stack([[r.errors[column][r.people[person]] for person in common] for r in reports])
        errors = dict(zip(names, errors[:, np.isfinite(errors).all(axis=0)], strict=True))
        for name, own in errors.items():
            difference = None if name == baseline else paired_difference(own, errors[baseline])
            mean = float(own.mean()) if len(own) else np.nan
            rows.append(Row(*column, name, len(own), mean, *bootstrap_interval(own), difference))
    if any(variant.startswith("best_of_") for variant in [*names, *(row.variant for row in rows)]):
        notes.append("best_of_Q is chosen with the ground truth, which no user has. Compare like with like.")
    return rows, notes


def variants_of(report: Report, patterns: Sequence[str]) -> list[Report]:
    """The variants of a report that match patterns, as reports of their own."""
    names = matching("variants", dict.fromkeys(variant for variant, _, _ in report.errors), patterns)
    if len(names) < 2:
        raise ValueError(
            f"There is nothing to compare: one report, and only {names[0]} of it. Give a second folder, or "
            "variants=[deterministic,mean_of_25]."
        )
    columns = report.errors.items()
    return [
        replace(report, name=name, errors={("", *of): errors for (variant, *of), errors in columns if variant == name})
        for name in names
    ]


def check_comparable(reports: Sequence[Report]) -> None:
    """Raise ValueError if the reports measure different things."""
    if not reports:
        raise ValueError("No reports: python tools/compare_reports.py FOLDER FOLDER …")
    for a, b in combinations(reports, 2):
        if a.name == b.name:
            raise ValueError(f"Two reports are called {a.name}: give names=[…], one per report.")
        if a.data and b.data and a.data["hash"] != b.data["hash"]:
            on = [f"{r.folder} is on {r.data['path']} (sha256 {r.data['hash']}…)" for r in (a, b)]
            raise ValueError(f"{' and '.join(on)}: errors on different data cannot be compared.")
        for name in sorted(a.protocols.keys() & b.protocols.keys()):
            if a.protocols[name] != b.protocols[name]:
                words = [f"{r.folder} ({r.protocols[name]})" for r in (a, b)]
                raise ValueError(f"The protocol {name} is not the same in {' and in '.join(words)}.")


def matching(option: str, names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match patterns, in the order of these; raises ValueError if a pattern matches none."""
    found = {}
    for pattern in patterns:
        matches = [name for name in names if fnmatch(name.lower(), pattern.lower())]
        if not matches:
            raise ValueError(f"{option}: {pattern} is not in all reports. There are: {', '.join(names)}.")
        found |= dict.fromkeys(matches)
    return list(found)


def comparison_table(rows: Sequence[Row]) -> str:
    """One line per row; protocol, metric, variant and people only in the first line of each block."""
    lines, block = [], None
    for row in rows:
        names = [row.protocol, f"{row.metric}, {'% of the box' if row.protocol == '2d' else 'mm'}", row.variant]
        left, people = (["", "", ""], "") if names == block else (names, f"{row.people:,}")
        block = names
        difference = ["", ""]
        if row.difference is not None:
            mean, *interval = row.difference
            difference = [format_number(mean, sign=True), format_interval(*interval, sign=True)]
        mark = "*" if row.verdict in ("better", "worse") else ""
        own = [row.name, people, format_number(row.mean), format_interval(row.low, row.high)]
        lines.append([*left, *own, *difference, mark, row.verdict])
    header = ["protocol", "metric", "variant", "report", "people", "mean", "95 % interval", "difference"]
    return format_table([*header, "95 % interval", "", "against baseline"], lines, left=4, markdown=True)


if __name__ == "__main__":
    run()
