"""Writes what an evaluation found: numbers, a report to read, plots and pictures, as files of one folder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mega.evaluation import plots
from mega.evaluation import plots as pictures
from mega.evaluation.statistics import (
    PER_SAMPLE,
    Results,
    by_joint,
    by_visibility,
    calibration,
    protocols_of,
    summarise,
)
from mega.evaluation.tables import describe, report_text
from mega_common.atomic_io import write_whole

SUMMARY, REPORT = "summary.json", "report.md"
_LARGEST_PNG = 1_500_000  # bytes; what is larger is written as JPEG


def write_report(
    folder: Path, results: Results, about: dict, faces: np.ndarray, template: np.ndarray, examples: Sequence[dict]
) -> None:
    """Write per_sample.csv, summary.json, report.md and its pictures, each whole; what stood there is written over.

    Plots of what is not known (samples, visibility, vertices) are left out.

    Args:
        folder: made if it is not there.
        about: "command", "date", "commit", "machine": text; "pictures": option of test_mega.py, may be left out;
            "weights": {path: sha256[:16]}; "data": {"name", "path", "hash": sha256[:16], "people"}; "options": {name:
            value}; "protocols": {name: Protocol}; "seconds": {stage: s}.
        faces: (F, 3); template: (V, 3) m, canonical (Y up), on which errors by vertex are drawn.
        examples: pictures to show, see `mega.evaluation.plots.draw_examples`; may be empty.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "n": len(results),
        "protocols": protocols_of(results),
        "columns": summarise(results),
        "visibility": by_visibility(results),
        "joints": by_joint(results),
        "calibration": calibration(results),
    }
    write_whole(folder / PER_SAMPLE, results.to_csv().encode())
    write_whole(folder / SUMMARY, _json({"about": _plain(about), **summary}))
    drawn = _draw(folder, results, summary, faces, template, examples)
    write_whole(folder / REPORT, report_text(summary, about, drawn).encode())


def _draw(
    folder: Path, results: Results, summary: dict, faces: np.ndarray, template: np.ndarray, examples: Sequence[dict]
) -> dict[str, str]:
    """Draw everything that is known; {file name: caption}."""
    figures = {
        "errors": (
            plots.error_histograms(results),
            "How many people have which error (deterministic prediction); a pale bar counts all beyond it.",
        ),
        "samples": (plots.sample_violins(results, summary), "Errors of people, by what is made of the samples."),
        "best_of": (plots.best_of_curves(results, summary), "What more samples bring, with 95 % intervals."),
        "calibration": (plots.calibration_curves(summary), "Error of joints by the spread of their samples."),
        "joints": (plots.joint_bars(summary), "Error by joint, with 95 % intervals."),
    }
    images = {
        "body": (pictures.draw_errors_on_body(results, faces, template), "Mean error of each vertex, front and back."),
        "examples": (
            pictures.draw_examples(examples, faces),
            "The best, middling and the worst predictions. Prediction and truth stand where the predicted camera puts "
            "the person; the errors are of bodies that are centred on their vertices.",
        ),
    }
    drawn = {}
    for name, (figure, caption) in figures.items():
        if figure is not None:
            write_whole(folder / f"{name}.png", plots.to_png(figure))
            drawn[f"{name}.png"] = caption
    for name, (image, caption) in images.items():
        if image is not None:
            drawn[_write_image(folder, name, image)] = caption
    return drawn


def _write_image(folder: Path, name: str, image: np.ndarray) -> str:
    """Write an RGB picture as PNG, or as JPEG if that is large; returns the file's name."""
    kind, data = ".png", cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    if len(data) > _LARGEST_PNG:
        kind, data = ".jpg", pictures.to_jpeg(image)
    write_whole(folder / f"{name}{kind}", data)
    return f"{name}{kind}"


def _plain(about: dict) -> dict:
    """`about` with protocols as plain dicts and their meaning in words."""
    protocols = {name: {"words": describe(p), **dataclasses.asdict(p)} for name, p in about["protocols"].items()}
    return {**about, "protocols": protocols}


def _json(content: dict) -> bytes:
    """JSON in which what is not known is null, since NaN is no JSON."""

    def known(value):
        if isinstance(value, dict):
            return {str(key): known(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [known(entry) for entry in value]
        if isinstance(value, np.generic):
            value = value.item()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return (json.dumps(known(content), indent=1, allow_nan=False, default=str) + "\n").encode()
