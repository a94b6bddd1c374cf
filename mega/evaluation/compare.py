"""Reports of test_mega.py, read back.

The errors of the same people in several reports, or of several kinds of prediction in one, and their differences.

A comparison in words, as a table that lines up, and as JSON.

A comparison as dots with intervals.

What `compare_reports.py` runs: reports side by side, printed, and where asked for, written.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import combinations, product
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig

from mega.evaluation.plots import BLUE, DPI, GREEN, GREY, ORANGE, PINK, SKY, VERMILION, to_png
from mega.evaluation.report import SUMMARY
from mega.evaluation.statistics import PER_SAMPLE, Results, paired_difference, summarise_columns
from mega.evaluation.tables import table
from mega_common.atomic_io import write_whole


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


_UNKNOWN = "–"
_EXPLANATION = (
    "A difference is the mean, over people, of the error minus the baseline's of the same person: negative is better. "
    "Intervals are bootstraps over people; * marks a difference whose interval leaves 0 out. Of the frames of a few "
    "videos the true intervals are wider, and of twenty comparisons of equals one is marked by chance."
)


def comparison_text(comparison: Comparison) -> str:
    """Table, what it says in words, and what was left out."""
    variant = f"{comparison.variants[0]}; " if len(comparison.variants) == 1 else ""
    head = f"{comparison.people:,} people; {variant}differences to {comparison.baseline}"
    said = [*sentences(comparison), _EXPLANATION, *comparison.notes]
    return "\n\n".join([head, comparison_table(comparison), "\n".join(f"- {sentence}" for sentence in said)])


def comparison_markdown(comparison: Comparison, reports: Sequence[Report], command: str, picture: str) -> str:
    """`comparison.md`."""
    folders = table(
        ("report", "folder", "people"),
        [(report.name, str(report.folder), f"{len(report.results):,}") for report in reports],
        left=2,
    )
    parts = ["# Comparison", f"By `{command}`", folders, comparison_text(comparison), f"![Differences]({picture})"]
    return "\n\n".join(parts) + "\n"


def comparison_json(comparison: Comparison, reports: Sequence[Report], command: str) -> str:
    """`comparison.json`: all numbers unrounded; those that are not known are null."""
    rows = [
        {
            **{name: getattr(row, name) for name in ("protocol", "metric", "variant", "people")},
            "entries": [_entry(row, entry) for entry in row.entries],
        }
        for row in comparison.rows
    ]
    content = {
        "command": command,
        "reports": [
            {"name": report.name, "folder": str(report.folder), "people": len(report.results), "data": report.data}
            for report in reports
        ],
        "baseline": comparison.baseline,
        "people": comparison.people,
        "notes": comparison.notes,
        "rows": rows,
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def comparison_table(comparison: Comparison) -> str:
    """A line for each entry of each row."""
    with_variant = len(comparison.variants) > 1
    header = ["protocol", "metric", *(["variant"] if with_variant else []), "of"]
    left = len(header)
    header += ["people", "mean", "95 % interval", "difference", "95 % interval", "", "against the baseline"]
    lines = []
    for row in comparison.rows:
        for entry in row.entries:
            # A row's names stand in its first line only, so that rows are seen as blocks.
            first = entry is row.entries[0]
            names = [row.protocol, f"{row.metric}, {row.unit}", *([row.variant] if with_variant else [])]
            lines.append(
                [
                    *(names if first else [""] * len(names)),
                    entry.name,
                    f"{row.people:,}" if first else "",
                    _number(entry.mean),
                    _interval(entry.low, entry.high),
                    *_difference(row, entry),
                    row.verdict(entry),
                ]
            )
    return table(header, lines, left)


def sentences(comparison: Comparison) -> list[str]:
    """For each but the baseline, by what it is better, worse, or neither."""
    found = []
    for name in comparison.names:
        if name == comparison.baseline:
            continue
        by_verdict: dict[str, list[str]] = defaultdict(list)
        for row in comparison.rows:
            entry = next(entry for entry in row.entries if entry.name == name)
            verdict = row.verdict(entry)
            size = f" by {abs(entry.difference[0]):.1f} {row.unit}" if verdict in ("better", "worse") else ""
            by_verdict[verdict].append(f"{comparison.label(row)}{size}")
        said = "; ".join(f"{verdict}: {', '.join(rows)}" for verdict, rows in by_verdict.items())
        found.append(f"{name} against {comparison.baseline}: {said}.")
    return found


def _difference(row: Row, entry: Entry) -> tuple[str, str, str]:
    """Difference, its interval, and the mark."""
    if entry.difference is None:
        return "", "", ""
    mean, low, high = entry.difference
    return _number(mean, sign=True), _interval(low, high, sign=True), "*" if row.is_clear(entry) else ""


def _entry(row: Row, entry: Entry) -> dict:
    numbers = {"mean": entry.mean, "low": entry.low, "high": entry.high}
    if entry.difference is not None:
        numbers |= dict(zip(("difference", "difference_low", "difference_high"), entry.difference, strict=True))
    known = {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()}
    return {"name": entry.name, **known, "excludes_zero": row.is_clear(entry), "verdict": row.verdict(entry)}


def _number(value: float, sign: bool = False) -> str:
    if not np.isfinite(value):
        return _UNKNOWN
    value = round(value, 1) + 0.0  # no -0.0
    return f"{value:+.1f}" if sign else f"{value:.1f}"


def _interval(low: float, high: float, sign: bool = False) -> str:
    return f"[{_number(low, sign)}, {_number(high, sign)}]" if np.isfinite(low) else _UNKNOWN


_COLORS = (BLUE, VERMILION, GREEN, PINK, SKY, ORANGE, "black")
_MARKERS = "osD^v"  # after seven the colours begin again, with another
_WIDTH_INCHES = 10.5
_LINE_INCHES, _GAP_LINES = 0.24, 0.9  # an entry's line; the room between rows in lines


def draw(comparison: Comparison) -> Figure:
    """Left the means, right the differences to the baseline; filled where the interval leaves 0 out."""
    block = len(comparison.names) + _GAP_LINES
    lines = block * len(comparison.rows)
    per_line = max(1, int(_WIDTH_INCHES / (0.7 + 0.09 * max(map(len, comparison.names)))))
    legend = 0.1 + 0.25 * math.ceil(len(comparison.names) / per_line)  # inches
    height = max(lines * _LINE_INCHES, 1.0) + 0.9 + legend
    figure = Figure((_WIDTH_INCHES, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - legend / height), w_pad=0.08, h_pad=0.06)
    means, differences = figure.subplots(1, 2, sharey=True)
    for r, row in enumerate(comparison.rows):
        for i, entry in enumerate(row.entries):
            y = r * block + i
            _dot(means, y, i, entry.mean, entry.low, entry.high, filled=True)
            if entry.difference is not None:
                _dot(differences, y, i, *entry.difference, filled=row.is_clear(entry))
        if r:
            for ax in (means, differences):
                ax.axhline(r * block - (1 + _GAP_LINES) / 2, color="#e4e4e4", lw=0.7, zorder=0)
    centres = [r * block + (len(comparison.names) - 1) / 2 for r in range(len(comparison.rows))]
    means.set_yticks(centres, [comparison.label(row).replace(" ", "\n", 1) for row in comparison.rows])
    means.set_ylim(lines - (1 + _GAP_LINES) / 2, -(1 + _GAP_LINES) / 2)
    differences.axvline(0, color=GREY, lw=1, zorder=1)
    unit = " and ".join(dict.fromkeys(row.unit for row in comparison.rows))
    _style(means, "Mean error", unit)
    _style(
        differences,
        f"Difference to {comparison.baseline}, of the same people",
        f"{unit}; left of 0 is better, hollow dots are not clear",
    )
    handles = [
        means.plot([], [], marker=_marker(i), color=_color(i), mfc=_color(i), ls="-", label=name)[0]
        for i, name in enumerate(comparison.names)
    ]
    figure.legend(handles=handles, loc="upper left", ncols=per_line, frameon=False, fontsize=10)
    return figure


def _dot(ax: Axes, y: float, i: int, mean: float, low: float, high: float, filled: bool) -> None:
    if not np.isfinite(mean):
        return
    if np.isfinite(low):
        ax.plot([low, high], [y, y], color=_color(i), lw=2, solid_capstyle="butt", zorder=2)
    face = _color(i) if filled else "white"
    ax.plot([mean], [y], marker=_marker(i), ms=6.5, mfc=face, mec=_color(i), mew=1.6, zorder=3)


def _style(ax: Axes, title: str, unit: str) -> None:
    ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    ax.set_xlabel(unit, fontsize=9, color=GREY)
    ax.grid(axis="x", color="#e4e4e4", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color("#bbbbbb")
    ax.tick_params(labelsize=9, color="#bbbbbb", labelcolor=GREY)
    ax.tick_params(axis="y", length=0, labelsize=10, labelcolor="black")


def _color(i: int) -> str:
    return _COLORS[i % len(_COLORS)]


def _marker(i: int) -> str:
    return _MARKERS[i // len(_COLORS) % len(_MARKERS)]


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
        folders = list(config.reports)
        names = config.names or _names(folders)
        if len(names) != len(folders):
            raise ValueError(f"names={names} are {len(names)}, but there are {len(folders)} reports.")
        reports = [read_report(folder, name) for folder, name in zip(folders, names, strict=True)]
        asked = {name: config[name] for name in ("variants", "protocols", "metrics")}
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
