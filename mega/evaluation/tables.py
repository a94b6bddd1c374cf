"""The words and tables of a report, as Markdown whose tables line up as text, too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mega.evaluation.statistics import METRICS
from mega.metrics import Protocol

_REGRESSORS = {
    "h36m": "the H36M regressor",
    "smpl": "SMPL's joint regressor",
    "body": "the body's keypoint regressor (of which COCO's are the first 17)",
}
_KINDS = ("best_of", "mean_of", "likeliest_of")
_UNKNOWN = "–"


def describe(protocol: Protocol) -> str:
    """What a protocol compares, in words."""
    joints = f"{len(protocol.joints)} joints of {_REGRESSORS[protocol.regressor]}, rows {_ranges(protocol.joints)}"
    root = "the mean of all vertices"
    if protocol.root is not None:
        rows = " and ".join(map(str, protocol.root))
        root = f"joint {rows}" if len(protocol.root) == 1 else f"the mean of joints {rows}"
    return (
        f"MPJPE and PA-MPJPE over {joints}; both bodies are centred on {root} before "
        f"PVE and MPJPE; PA-PVE after the best similarity of the {protocol.pa_pve}."
    )


def report_text(summary: dict, about: dict, pictures: dict[str, str]) -> str:
    """`report.md`.

    Args:
        summary: "n", "columns", "protocols" (names), "visibility", "joints" and "calibration", of
            `mega.evaluation.statistics`.
        about: see `mega.evaluation.report.write_report`.
        pictures: {file name: caption}.
    """
    columns, protocols = summary["columns"], summary["protocols"]
    parts = [f"# Evaluation on {about['data']['name']}: {_people(summary['n'])}", _head(about)]
    parts += [
        "Errors are in mm, one number a person, then averaged over people. Intervals are 95 % intervals of the mean by "
        "bootstrap over people (2,000 draws). They take people for independent: of the frames of a few videos the true "
        "intervals are wider."
    ]
    parts += ["## Protocols", "\n".join(f"- `{name}`: {describe(p)}" for name, p in about["protocols"].items())]
    parts += ["## One prediction a person (deterministic)", *_deterministic(columns, protocols)]
    variants = [name for name in variants_of(columns) if name != "deterministic"]
    if variants:
        parts += ["## Samples", *_samples(columns, protocols, variants)]
    if summary["visibility"]:
        parts += ["## Seen and hidden joints", _visibility(summary["visibility"])]
    if summary["calibration"]:
        parts += ["## Is the doubt worth anything?", *_calibration(summary)]
    if summary["joints"]:
        parts += ["## Joint by joint", _joints(summary["joints"])]
    if about["seconds"]:
        parts += ["## Where the time went", _seconds(about["seconds"], summary["n"])]
    if pictures:
        parts += ["## Pictures", *(f"![{caption}]({name})\n\n{caption}" for name, caption in pictures.items())]
    if about.get("pictures"):
        parts += ["Pictures of people, one per person: [pictures/](pictures)"]
    return "\n\n".join(parts) + "\n"


def variants_of(columns: Sequence[str]) -> list[str]:
    """Variants that there are columns of: deterministic, best_of_1, best_of_5, …, mean_of_1, …, likeliest_of_25."""

    def place(variant: str) -> tuple[int, int]:
        kind, _, count = variant.rpartition("_")
        return (_KINDS.index(kind) + 1, int(count)) if kind in _KINDS else (0, 0)

    return sorted({column.split("/")[0] for column in columns if column.count("/") == 2}, key=place)


def variant_title(variant: str) -> str:
    """best_of_5 -> best of 5; of a single sample all three kinds are the same thing."""
    return "one sample" if variant.endswith("_of_1") else variant.replace("_", " ")


def shown_variants(columns: Sequence[str]) -> list[str]:
    """As `variants_of`, without saying the same of one sample twice."""
    titles: dict[str, str] = {}
    for variant in variants_of(columns):
        titles.setdefault(variant_title(variant), variant)
    return list(titles.values())


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table that lines up as text; the first `left` columns stand to the left, the others to the right."""
    widths = [max(len(row[c]) for row in (header, *rows)) for c in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        placed = (
            cell.ljust(width) if c < left else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(placed)} |"

    rule = "|".join("-" * (w + 2) if c < left else "-" * (w + 1) + ":" for c, w in enumerate(widths))
    return "\n".join([line(header), f"|{rule}|", *map(line, rows)])


def _head(about: dict) -> str:
    rows = [(name, str(about[name])) for name in ("command", "date", "commit", "machine")]
    rows[0] = ("command", f"`{about['command']}`")
    data = about["data"]
    rows += [("data", f"{data['path']}, sha256 {data['hash']}…")]
    rows += [(f"weights {path}", f"sha256 {digest}…") for path, digest in about["weights"].items()]
    rows += [("options", ", ".join(f"{name}={value}" for name, value in about["options"].items()) or _UNKNOWN)]
    return table(("what", "of this evaluation"), rows, left=2)


def _deterministic(columns: dict, protocols: Sequence[str]) -> list[str]:
    rows = [
        (name, metric, *_statistics(columns[column]))
        for name in protocols
        for metric in METRICS
        if (column := f"deterministic/{name}/{metric}") in columns
    ]
    header = ("protocol", "metric", "mean", "95 % interval", "median", "people")
    parts = [table(header, rows, left=2)]
    on_crop = columns.get("deterministic/2d/keypoints")
    if on_crop and on_crop["n"]:
        mean, interval, median, n = _statistics(on_crop, 2)
        parts += [
            f"Visible 2D keypoints are off by {mean} % of the longer side of the person's box ({interval}; median "
            f"{median} %, {n} people with visible keypoints)."
        ]
    return parts


def _samples(columns: dict, protocols: Sequence[str], variants: Sequence[str]) -> list[str]:
    parts = [
        "`best of Q` takes, for each metric by itself, the least error of the first Q samples. It knows the truth: it "
        "tells what the samples reach, not what a user gets. `mean of Q` is the mean mesh of the first Q samples, "
        "`likeliest of Q` the sample that the model itself finds likeliest; neither knows the truth."
    ]
    for name in protocols:
        metrics = [metric for metric in METRICS if f"{variants[0]}/{name}/{metric}" in columns]
        rows = [
            [variant_title(variant), *(_with_interval(columns.get(f"{variant}/{name}/{metric}")) for metric in metrics)]
            for variant in shown_variants(columns)
        ]
        parts += [table([f"`{name}`", *metrics], rows)]
    spreads = {
        "spread/apd": "mean distance of the same vertex in two samples",
        "spread/std": "standard deviation of a vertex over the samples",
    }
    rows = [(words, *_statistics(columns[column])) for column, words in spreads.items() if column in columns]
    if rows:
        parts += [table(("spread, mm", "mean", "95 % interval", "median", "people"), rows)]
    return parts


def _visibility(groups: dict) -> str:
    rows = [(name, _number(row["error"]), _number(row["spread"]), f"{row['n']:,}") for name, row in groups.items()]
    return table(("joints", "error", "spread", "joints of people"), rows)


def _calibration(summary: dict) -> list[str]:
    found = summary["calibration"]
    measured = {f"joints, {name}": (group, group["n"]) for name, group in found.get("joints", {}).items()}
    measured |= {f"people, PVE of `{name}`": (of, summary["n"]) for name, of in found.get("people", {}).items()}
    rows = [
        [name, _with_interval(of["pearson"], 2), _with_interval(of["spearman"], 2), f"{n:,}"]
        for name, (of, n) in measured.items()
    ]
    parts = [
        "The correlation of the spread of the samples with the error of the deterministic prediction: 1 where the "
        "spread orders the errors perfectly, 0 where it knows nothing of them. Pearson's measures a straight line, "
        "Spearman's any order.",
        table(("spread and error of", "Pearson", "Spearman", "n"), rows),
    ]
    if group := found.get("joints", {}).get("all"):
        parts += [verdict(group, summary["visibility"]["all"])]
    return parts


def verdict(group: dict, means: dict) -> str:
    """What the calibration of joints says, in plain words.

    Args:
        group: of `mega.evaluation.statistics.calibration`.
        means: of all joints, of `mega.evaluation.statistics.by_visibility`.
    """
    rank, low, high = (group["spearman"][key] for key in ("value", "low", "high"))
    if not np.isfinite(low):
        return "There are too few people to say whether the spread tells anything."
    if low <= 0 <= high:
        first = "The spread tells nothing about the error: the correlation cannot be told from 0."
    elif rank < 0:
        first = "The spread misleads: where the samples agree, the errors are larger."
    else:
        strength = "a little" if rank < 0.3 else "something" if rank < 0.6 else "much"
        first = f"The spread tells {strength} about the error (Spearman {rank:.2f})."
    least, most = group["curve"][0], group["curve"][-1]
    second = (
        f"Where the samples agree best (spread {_number(least['spread'])} mm), a joint is off by "
        f"{_number(least['error'])} mm on average; where they agree least ({_number(most['spread'])} mm), by "
        f"{_number(most['error'])} mm."
    )
    ratio = means["error"] / means["spread"]
    if not np.isfinite(ratio):
        return f"{first} {second}"
    honest = "about as large as the error" if 0.8 < ratio < 1.25 else f"{ratio:.1f} times smaller than the error"
    if ratio <= 0.8:
        honest = f"{1 / ratio:.1f} times larger than the error"
    judged = "honest" if 0.8 < ratio < 1.25 else "too sure of itself" if ratio > 1 else "too unsure of itself"
    return f"{first} {second} On average the spread is {honest}: the model is {judged}."


def _joints(joints: dict) -> str:
    keys = [key for key in ("visible", "hidden", "spread") if any(np.isfinite(row[key]) for row in joints.values())]
    rows = [
        [name.replace("_", " "), *_statistics(row), *(_number(row[key]) for key in keys)]
        for name, row in joints.items()
    ]
    words = {"visible": "where seen", "hidden": "where hidden", "spread": "spread"}
    return table(["joint", "mean", "95 % interval", "median", "people", *(words[key] for key in keys)], rows)


def _seconds(seconds: dict[str, float], n: int) -> str:
    rows = [(stage, f"{s:.1f}", f"{1000 * s / max(n, 1):.1f}") for stage, s in seconds.items()]
    total = sum(seconds.values())
    rows.append(("all", f"{total:.1f}", f"{1000 * total / max(n, 1):.1f}"))
    return table(("stage", "s", "ms a person"), rows)


def _statistics(row: dict, decimals: int = 1) -> tuple[str, str, str, str]:
    """Mean, interval, median and number of people."""
    return (
        _number(row["mean"], decimals),
        _between(row["low"], row["high"], decimals),
        _number(row["median"], decimals),
        f"{row['n']:,}",
    )


def _with_interval(row: dict | None, decimals: int = 1) -> str:
    if row is None:
        return _UNKNOWN
    value = _number(row["mean"] if "mean" in row else row["value"], decimals)
    return f"{value} [{_between(row['low'], row['high'], decimals)}]" if np.isfinite(row["low"]) else value


def _between(low: float, high: float, decimals: int) -> str:
    return f"{low:.{decimals}f} to {high:.{decimals}f}" if np.isfinite(low) else _UNKNOWN


def _number(value: float, decimals: int = 1) -> str:
    return f"{value:.{decimals}f}" if np.isfinite(value) else _UNKNOWN


def _people(n: int) -> str:
    return "1 person" if n == 1 else f"{n:,} people"


def _ranges(rows: Sequence[int]) -> str:
    """0, 1, 2, 5 -> 0-2, 5."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][-1] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
