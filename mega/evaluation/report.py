"""The report of an evaluation: `report.md` with plots and pictures, `summary.json`, `per_sample.csv`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from mega.console import format_number, format_table
from mega.evaluation import plots
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
    variant_title,
)
from mega.metrics import Protocol
from mega_common.files import write_whole

SUMMARY, REPORT = "summary.json", "report.md"
_LARGEST_PNG = 1_500_000  # bytes; larger pictures are written as JPEG
_REGRESSORS = {
    "h36m": "the H36M regressor",
    "smpl": "SMPL's joint regressor",
    "body": "the body's keypoint regressor (whose first 17 are COCO's)",
}


def write_report(
    folder: Path, results: Results, about: dict, faces: np.ndarray, template: np.ndarray, examples: Sequence[dict]
) -> None:
    """Write per_sample.csv, summary.json, report.md and its pictures, replacing those of an earlier report.

    Plots of what was not measured (samples, visibility, vertices) are left out.

    Args:
        folder: made if it does not exist.
        about: "command", "date", "commit", "machine": text; "pictures": option of test_mega.py, optional;
            "weights": {path: sha256[:16]}; "data": {"name", "path", "hash": sha256[:16], "people"}; "options": {name:
            value}; "protocols": {name: Protocol}; "seconds": {stage: s}.
        faces: (F, 3); template: (V, 3) m, canonical (Y up), on which per-vertex errors are drawn.
        examples: see `mega.evaluation.plots.draw_examples`; may be empty.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "n": len(results),
        "protocols": protocols_of(results),
        "columns": summarise(results.columns),
        "visibility": by_visibility(results),
        "joints": by_joint(results),
        "calibration": calibration(results),
    }
    protocols = {name: {"words": describe(p), **dataclasses.asdict(p)} for name, p in about["protocols"].items()}
    write_whole(folder / PER_SAMPLE, results.to_csv().encode(errors="backslashreplace"))
    write_whole(folder / SUMMARY, _to_json({"about": {**about, "protocols": protocols}, **summary}))
    drawn = _draw(folder, results, summary, faces, template, examples)
    write_whole(folder / REPORT, report_text(summary, about, drawn).encode(errors="backslashreplace"))


def _draw(
    folder: Path, results: Results, summary: dict, faces: np.ndarray, template: np.ndarray, examples: Sequence[dict]
) -> dict[str, str]:
    """Write every plot and picture that can be drawn; {file name: caption}."""
    figures = {
        "errors": (
            plots.error_histograms(results),
            "Number of people by error (deterministic prediction); a pale bar includes all larger errors.",
        ),
        "samples": (plots.sample_violins(results, summary), "Errors for each way of using the samples."),
        "best_of": (plots.best_of_curves(results, summary), "The gain from more samples, with 95 % intervals."),
        "calibration": (plots.calibration_curves(summary), "Error of joints against the spread of their samples."),
        "joints": (plots.joint_bars(summary), "Error per joint, with 95 % intervals."),
    }
    images = {
        "body": (
            plots.draw_errors_on_body(results, faces, template),
            "Mean error of each vertex, front and back.",
        ),
        "examples": (
            plots.draw_examples(examples, faces),
            "The best, the median and the worst predictions. Prediction and truth are placed by the predicted camera; "
            "the error colours compare bodies that are centred on their vertices.",
        ),
    }
    drawn = {}
    for name, (figure, caption) in figures.items():
        if figure is not None:
            write_whole(folder / f"{name}.png", plots.to_png(figure))
            drawn[f"{name}.png"] = caption
    for name, (image, caption) in images.items():
        if image is not None:
            kind, data = "png", cv2.imencode(".png", image[..., ::-1])[1].tobytes()
            if len(data) > _LARGEST_PNG:
                kind, data = "jpg", plots.to_jpeg(image)
            write_whole(folder / f"{name}.{kind}", data)
            drawn[f"{name}.{kind}"] = caption
    return drawn


def _to_json(content: dict) -> bytes:
    """JSON, with null for what is not known, since JSON has no NaN."""

    def known(value):
        if isinstance(value, dict):
            return {str(key): known(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [known(entry) for entry in value]
        if isinstance(value, np.generic):
            value = value.item()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return (json.dumps(known(content), indent=1, allow_nan=False, default=str) + "\n").encode()


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


def report_text(summary: dict, about: dict, pictures: dict[str, str]) -> str:
    """`report.md`.

    Args:
        summary: "n", "columns", "protocols" (names), "visibility", "joints" and "calibration", of
            `mega.evaluation.statistics`.
        about: see `write_report`.
        pictures: {file name: caption}.
    """
    n, columns, protocols = summary["n"], summary["columns"], summary["protocols"]
    variants = [name for name in shown_variants(columns) if name != "deterministic"]
    parts = [
        f"# Evaluation on {about['data']['name']}: {'1 person' if n == 1 else f'{n:,} people'}",
        _settings(about),
        "Errors are in mm: one number per person, then the mean over people. Intervals are 95 % intervals of the mean, "
        "bootstrapped over people (2,000 resamples). They assume independent people: for frames of a few videos the "
        "true intervals are wider.",
        "## Protocols",
        "\n".join(f"- `{name}`: {describe(p)}" for name, p in about["protocols"].items()),
        "## Deterministic prediction",
        *_deterministic(columns, protocols),
    ]
    if variants:
        parts += ["## Samples", *_samples(columns, protocols)]
    if summary["visibility"]:
        rows = [
            (name, format_number(row["error"]), format_number(row["spread"]), f"{row['n']:,}")
            for name, row in summary["visibility"].items()
        ]
        parts += ["## Visible and hidden joints", _table(("joints", "error", "spread", "joints of people"), rows)]
    if summary["calibration"]:
        parts += ["## Calibration: does sample spread predict error?", *_calibration(summary)]
    if summary["joints"]:
        parts += ["## Joints", _joints(summary["joints"])]
    if seconds := about["seconds"]:
        rows = [
            (stage, f"{s:.1f}", f"{1000 * s / max(n, 1):.1f}")
            for stage, s in (*seconds.items(), ("all", sum(seconds.values())))
        ]
        parts += ["## Time", _table(("stage", "s", "ms per person"), rows)]
    if pictures:
        parts += ["## Pictures", *(f"![{caption}]({name})\n\n{caption}" for name, caption in pictures.items())]
    if about.get("pictures"):
        parts += ["One picture per person: [pictures/](pictures)"]
    return "\n\n".join(parts) + "\n"


def _settings(about: dict) -> str:
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
        (name, metric, *_statistics(columns[column]))
        for name in protocols
        for metric in METRICS
        if (column := f"deterministic/{name}/{metric}") in columns
    ]
    parts = [_table(("protocol", "metric", "mean", "95 % interval", "median", "people"), rows, left=2)]
    keypoints = columns.get("deterministic/2d/keypoints")
    if keypoints and keypoints["n"]:
        mean, interval, median, n = _statistics(keypoints, 2)
        parts += [
            f"Mean error of visible 2D keypoints: {mean} % of the longer side of the person's box ({interval}; median "
            f"{median} %, {n} people with visible keypoints)."
        ]
    return parts


def _samples(columns: dict, protocols: Sequence[str]) -> list[str]:
    parts = [
        "`best of Q` is the smallest error of the first Q samples, for each metric separately. It is chosen with the "
        "ground truth: a bound on what the samples contain, not what a user gets. `mean of Q` is the mean mesh of the "
        "first Q samples, `likeliest of Q` the sample that the model itself finds likeliest; neither needs the ground "
        "truth."
    ]
    for name in protocols:
        metrics = [metric for metric in METRICS if f"deterministic/{name}/{metric}" in columns]
        rows = [
            [variant_title(v), *(_with_interval(columns.get(f"{v}/{name}/{metric}")) for metric in metrics)]
            for v in shown_variants(columns)
        ]
        parts += [_table([f"`{name}`", *metrics], rows)]
    spreads = {
        "spread/apd": "mean distance of the same vertex in two samples",
        "spread/std": "standard deviation of a vertex over the samples",
    }
    rows = [(words, *_statistics(columns[column])) for column, words in spreads.items() if column in columns]
    if rows:
        parts += [_table(("spread, mm", "mean", "95 % interval", "median", "people"), rows)]
    return parts


def _calibration(summary: dict) -> list[str]:
    found = summary["calibration"]
    measured = {f"joints, {name}": (group, group["n"]) for name, group in found.get("joints", {}).items()}
    measured |= {f"people, PVE of `{name}`": (of, summary["n"]) for name, of in found.get("people", {}).items()}
    rows = [
        [name, _with_interval(of["pearson"], 2), _with_interval(of["spearman"], 2), f"{n:,}"]
        for name, (of, n) in measured.items()
    ]
    parts = [
        "Correlation between the spread of the samples and the error of the deterministic prediction. A rank "
        "correlation (Spearman) of 1 means that the spread sorts the errors perfectly, 0 that it does not predict "
        "them. Pearson's coefficient measures a linear relation.",
        _table(("spread and error of", "Pearson", "Spearman", "n"), rows),
    ]
    if group := found.get("joints", {}).get("all"):
        parts += [verdict(group, summary["visibility"]["all"])]
    return parts


def verdict(group: dict, means: dict) -> str:
    """The calibration of joints in words.

    Args:
        group: of `mega.evaluation.statistics.calibration`.
        means: of all joints, of `mega.evaluation.statistics.by_visibility`.
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
    if not np.isfinite(ratio):
        return f"{first} {second}"
    if 0.8 < ratio < 1.25:
        third = "On average the spread is about as large as the error: the model is well calibrated."
    elif ratio > 1:
        third = f"On average the spread is {ratio:.1f} times smaller than the error: the model is overconfident."
    else:
        third = f"On average the spread is {1 / ratio:.1f} times larger than the error: the model is underconfident."
    return f"{first} {second} {third}"


def _joints(joints: dict) -> str:
    keys = [key for key in ("visible", "hidden", "spread") if any(np.isfinite(row[key]) for row in joints.values())]
    rows = [
        [name.replace("_", " "), *_statistics(row), *(format_number(row[key]) for key in keys)]
        for name, row in joints.items()
    ]
    return _table(["joint", "mean", "95 % interval", "median", "people", *keys], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    return format_table(header, rows, left, markdown=True)


def _statistics(row: dict, decimals: int = 1) -> tuple[str, str, str, str]:
    """Mean, interval, median and number of people."""
    mean, median = (format_number(row[key], decimals) for key in ("mean", "median"))
    return mean, _between(row, decimals), median, f"{row['n']:,}"


def _with_interval(row: dict | None, decimals: int = 1) -> str:
    if row is None:
        return "–"
    value = format_number(row["mean"] if "mean" in row else row["value"], decimals)
    return f"{value} [{_between(row, decimals)}]" if np.isfinite(row["low"]) else value


def _between(row: dict, decimals: int) -> str:
    low, high = (format_number(row[key], decimals) for key in ("low", "high"))
    return f"{low} to {high}" if np.isfinite(row["low"]) else "–"


def _ranges(rows: Iterable[int]) -> str:
    """0, 1, 2, 5 -> 0-2, 5."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][-1] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
