"""The errors of the same people in several reports, or of several kinds of prediction in one, and their differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import combinations, product

import numpy as np

from mega.evaluation.report_files import Report
from mega.evaluation.summary import paired_difference, summarise_columns

METRICS = ("PVE", "MPJPE", "PA-MPJPE")
VARIANTS = ("deterministic",)
FEWEST = 20  # Of fewer people a bootstrap's interval is too narrow to call anything better.


@dataclass(frozen=True)
class Entry:
    """One that is compared, by one metric.

    Attributes:
        name: of the report, or of the kind of prediction.
        mean, low, high: of its error, in the unit of the row.
        difference: (mean, low, high) of its error minus the baseline's; None for the baseline itself.
    """

    name: str
    mean: float
    low: float
    high: float
    difference: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Row:
    """All entries by one metric.

    Attributes:
        variant: the kind of prediction; "" where the kinds are what is compared.
        people: that every entry has a number of.
    """

    protocol: str
    metric: str
    variant: str
    people: int
    entries: tuple[Entry, ...]

    @property
    def unit(self) -> str:
        return "% of the box" if self.protocol == "2d" else "mm"

    def is_clear(self, entry: Entry) -> bool:
        """Whether the interval of an entry's difference leaves 0 out, and of enough people to trust it."""
        if entry.difference is None or self.people < FEWEST:
            return False
        _, low, high = entry.difference
        return low > 0 or high < 0

    def verdict(self, entry: Entry) -> str:
        """In words, how an entry compares with the baseline."""
        if entry.difference is None:
            return "baseline"
        if self.people < FEWEST:
            return "too few people to tell"
        if entry.difference == (0, 0, 0):
            return "the same"
        if not self.is_clear(entry):
            return "no clear difference"
        return "better" if entry.difference[0] < 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        names: of what is compared; baseline: one of them.
        people: that all reports have.
        notes: sentences on what was left out, could not be checked, or has to be known.
    """

    names: tuple[str, ...]
    baseline: str
    people: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """The kinds of prediction that the rows are of; none where they are what is compared."""
        return tuple(dict.fromkeys(row.variant for row in self.rows if row.variant))

    def label(self, row: Row) -> str:
        """What tells a row from the others."""
        return " ".join((row.protocol, row.metric, *([row.variant] if len(self.variants) > 1 else [])))


def compare(
    reports: Sequence[Report],
    variants: Sequence[str] = VARIANTS,
    protocols: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    baseline: int | str = 0,
) -> Comparison:
    """Compare reports with one another, or, if there is only one, its kinds of prediction.

    Args:
        variants, protocols, metrics: names or patterns of the columns VARIANT/PROTOCOL/METRIC; all protocols if None.
        baseline: number or name of what the others are compared with.

    Raises ValueError when the reports cannot be compared, or a name fits nothing.
    """
    notes = _check_comparable(reports)
    rows_of, left_out = _common_people(reports)
    columns = [_columns(report, rows) for report, rows in zip(reports, rows_of, strict=True)]
    shared = [column for column in columns[0] if all(column in own for own in columns)]
    chosen = _choose(shared, variants, protocols, metrics)
    if len(reports) == 1:
        sides = _by_variant(columns[0], chosen)
    else:
        sides = {
            report.name: {
                (protocol, metric, variant): own[variant, protocol, metric] for variant, protocol, metric in chosen
            }
            for report, own in zip(reports, columns, strict=True)
        }
        notes += _unshared(columns, protocols)
    first = _baseline(list(sides), baseline)
    return Comparison(
        names=tuple(sides),
        baseline=first,
        people=len(rows_of[0]),
        rows=tuple(_row(key, {name: own[key] for name, own in sides.items()}, first) for key in sides[first]),
        notes=(*left_out, *notes, *_knows_truth(variant for variant, _, _ in chosen)),
    )


def _columns(report: Report, rows: np.ndarray) -> dict[tuple[str, str, str], np.ndarray]:
    """{(variant, protocol, metric): errors} of these rows of a report."""
    errors = {tuple(name.split("/")): values for name, values in report.results.columns.items()}
    return {column: values[rows] for column, values in errors.items() if len(column) == 3}


def _check_comparable(reports: Sequence[Report]) -> list[str]:
    """Raise ValueError where reports differ in what they measure; sentences on what cannot be told."""
    if not reports:
        raise ValueError("Say which reports: python compare_reports.py FOLDER FOLDER …")
    if twice := [name for name, count in Counter(report.name for report in reports).items() if count > 1]:
        raise ValueError(f"Two reports are called {twice[0]}: give names=[…], one a report.")
    for first, other in combinations(reports, 2):
        if first.data and other.data and first.data["hash"] != other.data["hash"]:
            raise ValueError(
                f"{first.folder} is of {_said(first.data)}, but {other.folder} of {_said(other.data)}: errors of other "
                "people in other pictures cannot be compared. Evaluate both on the same data."
            )
        for name in sorted(first.protocols.keys() & other.protocols.keys()):
            if first.protocols[name] != other.protocols[name]:
                raise ValueError(
                    f"The protocol {name} is not the same in {first.folder} ({first.protocols[name]['words']}) and in "
                    f"{other.folder} ({other.protocols[name]['words']}): their numbers cannot be compared."
                )
    unknown = [str(report.folder) for report in reports if report.data is None] if len(reports) > 1 else []
    return [f"Not checked, since no summary says what data it is of: {folder}." for folder in unknown]


def _said(data: dict) -> str:
    return f"{data['path']} (sha256 {data['hash']}…)"


def _common_people(reports: Sequence[Report]) -> tuple[list[np.ndarray], list[str]]:
    """For each report the rows of the people that all have, in the same order; and sentences on the others."""
    places = []
    for report in reports:
        people = list(zip(report.results.images.tolist(), report.results.persons.tolist(), strict=True))
        places.append({person: row for row, person in enumerate(people)})
        if len(places[-1]) < len(people):
            image, person = next(key for key, count in Counter(people).items() if count > 1)
            raise ValueError(f"{report.folder} has person {person} of {image} more than once: it is damaged.")
    common = [person for person in places[0] if all(person in own for own in places)]
    if not common:
        raise ValueError(f"{' and '.join(str(report.folder) for report in reports)} have nobody in common.")
    notes = [
        f"Left out, since not all reports have them: {len(own) - len(common):,} of the {len(own):,} people of "
        f"{report.name}."
        for report, own in zip(reports, places, strict=True)
        if len(own) > len(common)
    ]
    return [np.array([own[person] for person in common]) for own in places], notes


def _choose(
    columns: Sequence[tuple[str, str, str]],
    variants: Sequence[str],
    protocols: Sequence[str] | None,
    metrics: Sequence[str],
) -> list[tuple[str, str, str]]:
    """The columns (variant, protocol, metric) that are asked for, in the order that they are asked for."""
    if not columns:
        raise ValueError("The reports share no column VARIANT/PROTOCOL/METRIC: they have no protocol in common.")
    names = [list(dict.fromkeys(column[part] for column in columns)) for part in range(3)]
    variants = _matching("variants", variants, names[0])
    protocols = _matching("protocols", protocols, names[1])
    metrics = _matching("metrics", metrics, names[2])
    there = set(columns)
    chosen = [(v, p, m) for p, m, v in product(protocols, metrics, variants) if (v, p, m) in there]
    if not chosen:
        raise ValueError(f"No column fits all of variants, protocols and metrics. There are: {_listed(columns)}.")
    return chosen


def _matching(what: str, wanted: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    if wanted is None:
        return list(there)
    found = {}
    for pattern in wanted:
        fits = [name for name in there if fnmatch(name.lower(), pattern.lower())]
        if not fits:
            raise ValueError(
                f"{what}: nothing that all reports have is called {pattern}. There are: {', '.join(there)}."
            )
        found |= dict.fromkeys(fits)
    return list(found)


def _by_variant(own: dict, chosen: Sequence[tuple[str, str, str]]) -> dict[str, dict]:
    """{variant: {(protocol, metric, ""): errors}} of one report."""
    variants = list(dict.fromkeys(variant for variant, _, _ in chosen))
    if len(variants) < 2:
        raise ValueError(
            f"One report, and of it only {variants[0]}, is nothing to compare: give a second folder, "
            "or variants=[deterministic,mean_of_25]."
        )
    every = [(p, m) for p, m in dict.fromkeys((p, m) for _, p, m in chosen) if all((v, p, m) in own for v in variants)]
    if not every:
        raise ValueError(f"{', '.join(variants)} share no metric. There are: {_listed(own)}.")
    return {v: {(p, m, ""): own[v, p, m] for p, m in every} for v in variants}


def _unshared(columns: Sequence[dict], protocols: Sequence[str] | None) -> list[str]:
    """A sentence on protocols that are left out since not every report has them, where all were asked for."""
    have = [{protocol for _, protocol, _ in own} for own in columns]
    missing = sorted(set.union(*have) - set.intersection(*have)) if protocols is None else []
    return [f"Left out, since not all reports have them: the protocols {', '.join(missing)}."] if missing else []


def _knows_truth(variants: Iterable[str]) -> list[str]:
    if not any(variant.startswith("best_of_") for variant in variants):
        return []
    return [
        "best_of_Q knows the truth: it takes the least error of Q samples, which no user can. Compare like with like."
    ]


def _baseline(names: Sequence[str], baseline: int | str) -> str:
    if str(baseline) in names:
        return str(baseline)
    if isinstance(baseline, int) and 0 <= baseline < len(names):
        return names[baseline]
    raise ValueError(f"baseline={baseline} is neither a number below {len(names)} nor one of {', '.join(names)}.")


def _row(key: tuple[str, str, str], errors: dict[str, np.ndarray], baseline: str) -> Row:
    """Of errors {name: (P,)}; people without a number in any of them are left out."""
    known = np.all([np.isfinite(values) for values in errors.values()], axis=0)
    errors = {name: values[known] for name, values in errors.items()}
    entries = tuple(
        Entry(
            name,
            *(found[number] for number in ("mean", "low", "high")),
            None if name == baseline else paired_difference(errors[name], errors[baseline]),
        )
        for name, found in summarise_columns(errors).items()
    )
    return Row(*key, people=int(known.sum()), entries=entries)


def _listed(columns: Iterable[tuple[str, str, str]]) -> str:
    return ", ".join("/".join(column) for column in columns)
