"""A comparison in words, as a table that lines up, and as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mega.evaluation.compare import Comparison, Entry, Row
from mega.evaluation.report_files import Report
from mega.evaluation.text import table

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
