"""The report of an evaluation: `report.md` with plots and pictures, `summary.json`, `per_sample.csv`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mega.console import format_number, format_table
from mega.evaluation.plots import Person, draw_report
from mega.evaluation.statistics import (
    METRICS,
    PER_SAMPLE,
    Results,
    by_joint,
    by_visibility,
    calibration,
    protocols_of,
    shown_variants,
    summarise,
)
from mega.metrics import Protocol
from mega_common.files import write_json, write_whole

SUMMARY, REPORT = "summary.json", "report.md"
_REGRESSORS = {
    "h36m": "the H36M regressor",
    "smpl": "SMPL's joint regressor",
    "body": "the body's keypoint regressor (whose first 17 are COCO's)",
}


def write_report(
    folder: Path, results: Results, about: dict, faces: np.ndarray, template: np.ndarray, examples: Sequence[Person]
) -> None:
    """Write per_sample.csv, summary.json, report.md and its pictures, replacing those of an earlier report.

    Plots of what was not measured (samples, visibility, vertices) are left out.

    Args:
        folder: made if it does not exist.
        about: "command", "date", "commit", "machine": text; "pictures": option of test_mega.py, optional;
            "weights": {path: sha256[:16]}; "data": {"name", "path", "hash": sha256[:16], "people"}; "options": {name:
            value}; "protocols": {name: Protocol}; "seconds": {stage: s}.
        faces: (F, 3); template: (V, 3) m, canonical (Y up), on which per-vertex errors are drawn.
        examples: people to draw, may be empty.
    """
    folder = Path(folder)
    summary = {
        "n": len(results),
        "protocols": protocols_of(results),
        "columns": summarise(results.columns),
        "visibility": by_visibility(results),
        "joints": by_joint(results),
        "calibration": calibration(results),
    }
    protocols = {name: {"words": describe(p), **dataclasses.asdict(p)} for name, p in about["protocols"].items()}
    content = json.dumps({"about": {**about, "protocols": protocols}, **summary})
    write_whole(folder / PER_SAMPLE, results.to_csv().encode(errors="backslashreplace"))
    write_json(folder / SUMMARY, json.loads(content, parse_constant=lambda _: None))  # null for NaN, which JSON lacks
    pictures = draw_report(results, summary, faces, template, examples)
    for name, (data, _) in pictures.items():
        write_whole(folder / name, data)
    captions = {name: caption for name, (_, caption) in pictures.items()}
    write_whole(folder / REPORT, _report_text(summary, about, captions).encode(errors="backslashreplace"))


def describe(protocol: Protocol) -> str:
    """What a protocol compares, in words."""
    root = "the mean of all vertices"
    if protocol.root is not None:
        rows = " and ".join(map(str, protocol.root))
        root = f"joint {rows}" if len(protocol.root) == 1 else f"the mean of joints {rows}"
    return (
        f"MPJPE and PA-MPJPE over {len(protocol.joints)} joints of {_REGRESSORS[protocol.regressor]}, rows "
        f"{_ranges(protocol.joints)}; both bodies are centred on {root} before PVE and MPJPE; PA-PVE after the best "
        f"similarity transform of the {protocol.pa_pve}."
    )


def _report_text(summary: dict, about: dict, pictures: dict[str, str]) -> str:
    """`report.md`; sections without content are left out. `pictures` is {file name: caption}."""
    n, columns, seconds = summary["n"], summary["columns"], about["seconds"]
    sections = {
        "Protocols": ["\n".join(f"- `{name}`: {describe(p)}" for name, p in about["protocols"].items())],
        "Deterministic prediction": _deterministic(columns, summary["protocols"]),
        "Samples": _samples(columns, summary["protocols"]),
        "Visible and hidden joints": _table(
            ("joints", "error", "spread", "joints of people"),
            [
                (name, format_number(row["error"]), format_number(row["spread"]), f"{row['n']:,}")
                for name, row in summary["visibility"].items()
            ],
        ),
        "Calibration: does sample spread predict error?": _calibration(summary),
        "Joints": _joints(summary["joints"]),
        "Time": _table(
            ("stage", "s", "ms per person"),
            [
                (stage, f"{s:.1f}", f"{1000 * s / n:.1f}")
                for stage, s in {**seconds, "all": sum(seconds.values())}.items()
                if seconds
            ],
        ),
        "Pictures": [f"![{caption}]({name})\n\n{caption}" for name, caption in pictures.items()]
        + ["One picture per person: [pictures/](pictures)"] * bool(about.get("pictures")),
    }
    parts = [
        f"# Evaluation on {about['data']['name']}: {'1 person' if n == 1 else f'{n:,} people'}",
        *_settings(about),
        "Errors are in mm: one number per person, then the mean over people. Intervals are 95 % intervals of the mean, "
        "bootstrapped over people (2,000 resamples). They assume independent people: for frames of a few videos the "
        "true intervals are wider.",
    ]
    for title, paragraphs in sections.items():
        if paragraphs:
            parts += [f"## {title}", *paragraphs]
    return "\n\n".join(parts) + "\n"


def _settings(about: dict) -> list[str]:
    data = about["data"]
    rows = [
        ("command", f"`{about['command']}`"),
        *((name, about[name]) for name in ("date", "commit", "machine")),
        ("data", f"{data['path']}, sha256 {data['hash']}…"),
        *((f"weights {path}", f"sha256 {digest}…") for path, digest in about["weights"].items()),
        ("options", ", ".join(f"{name}={value}" for name, value in about["options"].items()) or "–"),
    ]
    return _table(("setting", "value"), rows, left=2)


def _deterministic(columns: dict, protocols: Sequence[str]) -> list[str]:
    rows = [
        (name, metric, *_statistics(columns[f"deterministic/{name}/{metric}"]))
        for name in protocols
        for metric in METRICS
    ]
    parts = _table(("protocol", "metric", "mean", "95 % interval", "median", "people"), rows, left=2)
    keypoints = columns["deterministic/2d/keypoints"]
    if keypoints["n"]:
        mean, interval, median, n = _statistics(keypoints, 2)
        parts += [
            f"Mean error of visible 2D keypoints: {mean} % of the longer side of the person's box ({interval}; median "
            f"{median} %, {n} people with visible keypoints)."
        ]
    return parts


def _samples(columns: dict, protocols: Sequence[str]) -> list[str]:
    variants = shown_variants(columns)
    if len(variants) < 2:
        return []
    parts = [
        "`best of Q` is the smallest error of the first Q samples, for each metric separately. It is chosen with the "
        "ground truth: a bound on what the samples contain, not what a user gets. `mean of Q` is the mean mesh of the "
        "first Q samples, `likeliest of Q` the sample that the model itself finds likeliest; neither needs the ground "
        "truth."
    ]
    for name in protocols:
        rows = [
            (title, *(_with_interval(columns[f"{variant}/{name}/{metric}"], "mean") for metric in METRICS))
            for variant, title in variants.items()
        ]
        parts += _table((f"`{name}`", *METRICS), rows)
    rows = [
        ("mean distance of the same vertex in two samples", *_statistics(columns["spread/apd"])),
        ("standard deviation of a vertex over the samples", *_statistics(columns["spread/std"])),
    ]
    return parts + _table(("spread, mm", "mean", "95 % interval", "median", "people"), rows)


def _calibration(summary: dict) -> list[str]:
    found = summary["calibration"]
    if not found:
        return []
    measured = {f"joints, {name}": (group, group["n"]) for name, group in found.get("joints", {}).items()}
    measured |= {f"people, PVE of `{name}`": (of, summary["n"]) for name, of in found["people"].items()}
    rows = [
        (name, *(_with_interval(of[kind], "value", 2) for kind in ("pearson", "spearman")), f"{n:,}")
        for name, (of, n) in measured.items()
    ]
    parts = [
        "Correlation between the spread of the samples and the error of the deterministic prediction. A rank "
        "correlation (Spearman) of 1 means that the spread sorts the errors perfectly, 0 that it does not predict "
        "them. Pearson's coefficient measures a linear relation.",
        *_table(("spread and error of", "Pearson", "Spearman", "n"), rows),
    ]
    if "joints" in found:
        parts += [verdict(found["joints"]["all"], summary["visibility"]["all"])]
    return parts


def verdict(group: dict, means: dict) -> str:
    """The calibration of joints in words.

    Args:
        group: a group of joints from `mega.evaluation.statistics.calibration`.
        means: the means over all joints from `mega.evaluation.statistics.by_visibility`, mm.
    """
    rank, low, high = (group["spearman"][key] for key in ("value", "low", "high"))
    if not np.isfinite(low):
        return "There are too few people to say whether the spread predicts the error."
    if low <= 0 <= high:
        first = "The spread does not predict the error: the interval of the correlation contains 0."
    elif rank < 0:
        first = "The spread is misleading: where the samples agree, errors are larger."
    else:
        strength = "weakly" if rank < 0.3 else "moderately" if rank < 0.6 else "strongly"
        first = f"The spread is {strength} correlated with the error (Spearman {rank:.2f})."
    least, most = group["curve"][0], group["curve"][-1]
    second = (
        f"Where the samples agree best (spread {least['spread']:.1f} mm), the mean error of a joint is "
        f"{least['error']:.1f} mm; where they agree least ({most['spread']:.1f} mm), it is {most['error']:.1f} mm."
    )
    ratio = means["error"] / means["spread"]
    third = f"On average the spread is {ratio:.1f} times smaller than the error: the model is overconfident."
    if 0.8 < ratio < 1.25:
        third = "On average the spread is about as large as the error: the model is well calibrated."
    elif ratio <= 0.8:
        third = f"On average the spread is {1 / ratio:.1f} times larger than the error: the model is underconfident."
    return f"{first} {second} {third}"


def _joints(joints: dict) -> list[str]:
    keys = [key for key in ("visible", "hidden", "spread") if any(np.isfinite(row[key]) for row in joints.values())]
    rows = [
        (name.replace("_", " "), *_statistics(row), *(format_number(row[key]) for key in keys))
        for name, row in joints.items()
    ]
    return _table(("joint", "mean", "95 % interval", "median", "people", *keys), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A paragraph with a table; none without rows."""
    return [format_table(header, rows, left, markdown=True)] if rows else []


def _statistics(row: dict, decimals: int = 1) -> tuple[str, str, str, str]:
    """Mean, interval, median and number of people."""
    mean, median = (format_number(row[key], decimals) for key in ("mean", "median"))
    return mean, format_interval(row["low"], row["high"], decimals), median, f"{row['n']:,}"


def _with_interval(row: dict, key: str, decimals: int = 1) -> str:
    value = format_number(row[key], decimals)
    return f"{value} {format_interval(row['low'], row['high'], decimals)}" if np.isfinite(row["low"]) else value


def format_interval(low: float, high: float, decimals: int = 1, sign: bool = False) -> str:
    """[low, high], or an en dash where the interval is not known (NaN)."""
    if not np.isfinite(low):
        return "–"
    return f"[{format_number(low, decimals, sign)}, {format_number(high, decimals, sign)}]"


def _ranges(rows: Iterable[int]) -> str:
    """0, 1, 2, 5 -> 0-2, 5."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][-1] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
