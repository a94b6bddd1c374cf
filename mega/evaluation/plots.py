"""Plots and pictures of an evaluation.

`summary` is the one of `mega.evaluation.report`: "protocols", "columns", "joints", "calibration". Functions return None
if what they show was not measured.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import default_collate

from mega.evaluation.statistics import METRICS, Results, shown_variants
from mega.evaluation.test_sets import TestSet
from mega.export import scale_to_draw
from mega.geometry import MM_PER_M
from mega.predictor import Predictor
from mega.rendering import draw_body, draw_people, draw_side_view, draw_uncertainty, far_camera, panel, people_openness
from mega.rendering.panels import color_bar, round_limit
from mega.rendering.shading import heat_colors, palette_colors
from mega.sampling import Prediction
from mega_common.files import write_whole

# Colours of Okabe & Ito, which colour-blind people can distinguish.
_BLUE, _VERMILION, _GREEN, _PINK, _SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
_GREY, _PALE = "#555555", "#cfe6f5"
_STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.dpi": 110,
    "font.size": 9,
    "grid.color": "#e4e4e4",
}
_PANEL = (3.7, 2.6)  # inches
_SHOWN_METRICS = METRICS[:3]
_LARGEST_PNG = 1_500_000  # bytes; larger pictures are written as JPEG
_BODY_HEIGHT, _EXAMPLE_SIDE, _PERSON_SIDE = 560, 260, 384  # px


@style.context(["seaborn-v0_8-whitegrid", _STYLE])
def draw_report(
    results: Results, summary: dict, faces: np.ndarray, template: np.ndarray, examples: Sequence[Person]
) -> dict[str, tuple[bytes, str]]:
    """Every plot and picture of what was measured: {file name: (content of the file, caption)}.

    See `mega.evaluation.report.write_report` for the arguments.
    """
    pictures = {
        "errors": (
            _error_histograms(results, summary),
            "Number of people by error (deterministic prediction); a pale bar includes all larger errors.",
        ),
        "samples": (_sample_boxes(results, summary), "Errors for each way of using the samples."),
        "best_of": (_best_of_curves(summary), "The gain from more samples, with 95 % intervals."),
        "calibration": (_calibration_curves(summary), "Error of joints against the spread of their samples."),
        "joints": (_joint_bars(summary), "Error per joint, with 95 % intervals."),
        "body": (draw_errors_on_body(results, faces, template), "Mean error of each vertex, front and back."),
        "examples": (
            _draw_examples(examples, faces),
            "The best, the median and the worst predictions. Prediction and truth are placed by the predicted camera; "
            "the error colours compare bodies that are centred on their vertices.",
        ),
    }
    files = {}
    for name, (picture, caption) in pictures.items():
        if isinstance(picture, Figure):
            file = io.BytesIO()
            picture.savefig(file)
            files[f"{name}.png"] = (file.getvalue(), caption)
        elif picture is not None:
            png = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
            large = len(png) > _LARGEST_PNG
            files[f"{name}.jpg" if large else f"{name}.png"] = (_to_jpeg(picture) if large else png, caption)
    return files


def _error_histograms(results: Results, summary: dict) -> Figure:
    """Errors of the deterministic prediction: one row per protocol, one plot per metric, lines at mean and median.

    With more than 100 people the last bar also counts all larger errors, and is then pale.
    """
    figure, axes = _subplots(len(summary["protocols"]), len(_SHOWN_METRICS), sharex="col")
    for protocol, row in zip(summary["protocols"], axes, strict=True):
        for metric, ax in zip(_SHOWN_METRICS, row, strict=True):
            ax.set(title=f"{metric}, {protocol}", xlabel="mm", ylabel="people")
            values = _known(results, f"deterministic/{protocol}/{metric}")
            if len(values) == 0:
                continue
            # A few outliers would squeeze all others into one bar: count them in the last one.
            end = np.quantile(values, 0.99) if len(values) > 100 else values.max()
            bins = np.linspace(0, max(end, 1), min(40, 8 + len(values) // 10))
            _, _, bars = ax.hist(np.minimum(values, bins[-1]), bins, color=_SKY, edgecolor="white", lw=0.5)
            ax.tick_params(labelbottom=True)
            ax.yaxis.get_major_locator().set_params(integer=True)
            if values.max() > bins[-1]:
                bars[-1].set_facecolor(_PALE)
            for value, name, dashes in ((values.mean(), "mean", "-"), (np.median(values), "median", "--")):
                ax.axvline(value, color=_VERMILION, ls=dashes, label=f"{name} {value:.0f} mm")
            ax.legend()
    return figure


def _sample_boxes(results: Results, summary: dict) -> Figure | None:
    """Quartiles of the errors for each way of using the samples, under the first protocol; whiskers hold 98 %."""
    variants, protocol = shown_variants(results.columns), summary["protocols"][0]
    if len(variants) < 2:
        return None
    kinds = {"deterministic": _VERMILION, "best": _BLUE, "mean": _GREEN, "likeliest": _PINK}
    colors = [_GREY if title == "one sample" else kinds[title.split()[0]] for title in variants.values()]
    figure, axes = _subplots(1, len(_SHOWN_METRICS), (_PANEL[0], 0.9 + 0.36 * len(variants)), sharey=True)
    for metric, ax in zip(_SHOWN_METRICS, axes[0], strict=True):
        values = [_known(results, f"{variant}/{protocol}/{metric}") for variant in variants]
        boxes = ax.boxplot(values, vert=False, widths=0.6, whis=(1, 99), showfliers=False, patch_artist=True)
        for box, median, color in zip(boxes["boxes"], boxes["medians"], colors, strict=True):
            box.set(facecolor=color, alpha=0.5)
            median.set(color=color, lw=2.5)
        ax.set(title=f"{metric}, {protocol}", xlabel="mm", xlim=(0, None))
        ax.set_yticks(range(1, len(variants) + 1), variants.values())
        ax.grid(False, axis="y")
    axes[0, 0].invert_yaxis()  # which all share
    return figure


def _best_of_curves(summary: dict) -> Figure | None:
    """Error of best of Q and mean of Q against Q, and of the deterministic prediction, under the first protocol."""
    protocol, columns = summary["protocols"][0], summary["columns"]
    counts = sorted({int(match[1]) for name in columns if (match := re.match(r"best_of_(\d+)/", name))})
    if len(counts) < 2:
        return None
    figure, axes = _subplots(1, len(_SHOWN_METRICS), (_PANEL[0], 2.9))
    for metric, ax in zip(_SHOWN_METRICS, axes[0], strict=True):
        for kind, color in (("best", _BLUE), ("mean", _GREEN)):
            rows = [columns[f"{kind}_of_{count}/{protocol}/{metric}"] for count in counts]
            _curve(ax, counts, rows, "mean", color=color, marker="o", label=f"{kind} of Q")
        single = columns[f"deterministic/{protocol}/{metric}"]
        ax.axhspan(single["low"], single["high"], color=_VERMILION, alpha=0.14, lw=0)
        ax.axhline(single["mean"], color=_VERMILION, ls="--", label="deterministic")
        ax.set(title=f"{metric}, {protocol}", xlabel="samples Q", ylabel="mm", xscale="log")
        ax.set_xticks(counts, counts)
        ax.minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _calibration_curves(summary: dict) -> Figure | None:
    """Mean error against mean spread in bins of equal size, for visible and hidden joints separately."""
    groups = summary["calibration"].get("joints", {})
    curves = {name: group["curve"] for name, group in groups.items() if group["curve"]}
    if len(curves) > 1:
        del curves["all"]
    if not curves:
        return None
    figure, [[ax]] = _subplots(1, 1, (5.4, 4.2))
    for (name, curve), color, marker in zip(curves.items(), (_BLUE, _VERMILION), "os", strict=False):
        label = f"{name} joints, Spearman {groups[name]['spearman']['value']:.2f}"
        _curve(ax, [row["spread"] for row in curve], curve, "error", color=color, marker=marker, label=label)
    ax.axline((0, 0), slope=1, color=_GREY, ls=":", lw=1.2, label="error = spread")
    ax.set(title="Does sample spread predict error?", xlim=(0, None), ylim=(0, None))
    ax.set(xlabel="spread of the samples at a joint, mm", ylabel="error of the joint, mm")
    ax.legend()
    return figure


def _joint_bars(summary: dict) -> Figure | None:
    """Mean error of each joint, with intervals; dots for visible and hidden ones."""
    joints = summary["joints"]
    if not joints:
        return None
    keys = ("mean", "low", "high", "visible", "hidden")
    mean, low, high, *known = (np.array([row[key] for row in joints.values()]) for key in keys)
    figure, [[ax]] = _subplots(1, 1, (7.4, 1.1 + 0.25 * len(joints)))
    place = np.arange(len(joints))
    bars = np.nan_to_num(np.stack([mean - low, high - mean]))
    ax.barh(place, mean, 0.7, color=_PALE, xerr=bars, error_kw={"ecolor": _GREY, "lw": 1})
    for values, name, color, marker in zip(known, keys[3:], (_BLUE, _VERMILION), "os", strict=True):
        if np.isfinite(values).any():
            ax.plot(values, place, marker, color=color, ms=5, mec="white", mew=0.6, label=name)
            ax.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    ax.set_yticks(place, [name.replace("_", " ") for name in joints])
    ax.set(title="Error per joint", xlabel="mm", ylim=(len(joints) - 0.4, -0.6))
    ax.grid(False, axis="y")
    return figure


def _subplots(rows: int, columns: int, size: tuple[float, float] = _PANEL, **options) -> tuple[Figure, np.ndarray]:
    """A figure of plots (rows, columns) of the same size in inches."""
    figure = Figure((columns * size[0], rows * size[1]), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _curve(ax: Axes, x: Sequence[float], rows: Sequence[dict], key: str, color: str, **options) -> None:
    """A value of each row against x, with a band from "low" to "high"."""
    ax.fill_between(x, [row["low"] for row in rows], [row["high"] for row in rows], color=color, alpha=0.18, lw=0)
    ax.plot(x, [row[key] for row in rows], color=color, ms=4, **options)


def _known(results: Results, column: str) -> np.ndarray:
    values = results.columns[column]
    return values[np.isfinite(values)]


def draw_errors_on_body(results: Results, faces: np.ndarray, template: np.ndarray) -> np.ndarray | None:
    """The template (V, 3) m, Y up, front and back, coloured by the mean error of each vertex, and by its spread.

    Returns:
        (H, W, 3) uint8, or None without per-vertex errors.
    """
    cells = []
    for name, values in (("error", results.vertex_error), ("spread", results.vertex_spread)):
        if values is None or not np.isfinite(values).any():
            continue
        metres = np.nan_to_num(values) / MM_PER_M
        limit = round_limit(metres)
        colors = heat_colors(metres, limit)[None]
        for side in ("front", "back"):
            cells.append((draw_body(template, faces, _BODY_HEIGHT, colors, side == "back"), f"{name}, {side}"))
        cells.append((color_bar(_BODY_HEIGHT, limit), ""))
    return panel([cells]) if cells else None


@dataclass
class Person:
    """A predicted person, in the camera frame of its crop."""

    image: np.ndarray  # (S, S, 3) uint8 RGB, the crop
    focal: float  # px
    principal_point: np.ndarray  # (2,) px
    vertices: np.ndarray  # (V, 3) m, the prediction
    truth: np.ndarray  # (V, 3) m, placed by the predicted camera
    title: str = ""


@torch.no_grad()
def choose_examples(predictor: Predictor, people: TestSet, results: Results, each: int) -> list[Person]:
    """The `each` best, median and worst people by the PVE of the first protocol."""
    errors = results.columns[next(name for name in results.columns if name.endswith("/PVE"))]
    order = np.argsort(errors, kind="stable").tolist()
    each = min(each, len(order))
    middle = (len(order) - each) // 2
    examples = []
    for kind, start in (("best", 0), ("median", middle), ("worst", len(order) - each)):
        for row in order[start : start + each]:
            batch = default_collate([people.items[row]])
            batch = {name: value.to(predictor.device) for name, value in batch.items()}
            (person,) = _people(batch, predictor.predict(batch["image"]), people.truth(batch))
            person.title = f"{kind}: {errors[row]:.0f} mm"
            examples.append(person)
    return examples


def _draw_examples(examples: Sequence[Person], faces: np.ndarray) -> np.ndarray | None:
    """One row per example: crop, truth, prediction, prediction coloured by error, and both from the side.

    Returns:
        (H, W, 3) uint8, or None without examples. All rows have the same colour scale.
    """
    if not examples:
        return None
    differences = np.stack([person.vertices - person.truth for person in examples])
    errors = np.linalg.norm(differences - differences.mean(axis=1, keepdims=True), axis=-1)  # both bodies centred
    limit = round_limit(errors)
    colors = palette_colors(2)
    rows = []
    for person, error in zip(examples, errors, strict=True):
        truth, prediction = person.truth[None], person.vertices[None]
        picture, *camera = scale_to_draw(person.image, person, _EXAMPLE_SIDE)
        paper, heat = np.full_like(picture, 244), heat_colors(error, limit)[None]
        light = people_openness(prediction, faces)
        both = draw_side_view(np.concatenate([truth, prediction]), faces, _EXAMPLE_SIDE, colors)
        rows.append(
            [
                (picture, person.title),
                (draw_people(picture, truth, faces, *camera, colors[:1]), "truth"),
                (draw_people(picture, prediction, faces, *camera, colors[1:], light), "prediction"),
                (draw_people(paper, prediction, faces, *camera, heat, light), "error"),
                (color_bar(_EXAMPLE_SIDE, limit), ""),
                (both, "both from the side"),  # last, since its width differs
            ]
        )
    return panel(rows)


def write_person_pictures(
    folder: Path,
    people: TestSet,
    batch: dict,
    prediction: Prediction,
    truth: Tensor,
    errors: dict[str, Tensor],
    protocol: str,
    faces: np.ndarray,
    count: int,
) -> None:
    """Write a picture of each person of a measured batch, `000123_NAME_p0.jpg`.

    Pictures that exist are not drawn again, so an interrupted evaluation continues with the missing ones.

    Args:
        batch, prediction, truth, errors: see `Evaluator`.
        protocol: name of the protocol whose errors are written below the prediction.
        count: only of the first so many people of the test set.
    """
    for i, (row, person) in enumerate(zip(batch["index"].tolist(), _people(batch, prediction, truth), strict=True)):
        image, number = Path(people.imgname[row]), people.persons[row]
        # The end of a path says more than its beginning, and file names are limited to 255 bytes.
        name = re.sub(r"[^A-Za-z0-9-]+", "_", str(image.with_suffix("")))[-100:].strip("_")
        path = folder / f"{row:06}_{name}_p{number}.jpg"
        if row >= count or path.is_file():
            continue
        person.title = f"{image.name}, person {number}"
        caption = ", ".join(f"{m} {errors[f'deterministic/{protocol}/{m}'][i]:.1f}" for m in _SHOWN_METRICS)
        spread = errors["vertex_spread"][i].cpu().numpy() / MM_PER_M if "vertex_spread" in errors else None
        write_whole(path, _to_jpeg(draw_person(person, faces, f"{caption} mm ({protocol})", spread)))


def draw_person(person: Person, faces: np.ndarray, errors: str, spread: np.ndarray | None) -> np.ndarray:
    """Crop, prediction in place and from the side, and the spread of the samples at each vertex.

    Args:
        faces: (F, 3).
        errors: caption of the prediction.
        spread: (V,) m, standard deviation over the samples, or None without samples.

    Returns:
        (H, W, 3) uint8.
    """
    prediction = person.vertices[None]
    picture, *camera = scale_to_draw(person.image, person, _PERSON_SIDE)
    light = people_openness(prediction, faces)
    cells = [
        (picture, person.title),
        (draw_people(picture, prediction, faces, *camera, open_share=light), errors),
        (draw_side_view(prediction, faces, _PERSON_SIDE, open_share=light), "from the side"),
    ]
    if spread is not None:
        heat = draw_uncertainty(picture, prediction, faces, *camera, spread[None], light)
        cells.append((heat, f"standard deviation of the samples, mean {MM_PER_M * spread.mean():.1f} mm"))
    return panel([cells])


def _people(batch: dict, prediction: Prediction, truth: Tensor) -> list[Person]:
    """The people of a batch with true meshes (B, V, 3), where the predicted camera sees them."""
    images = batch["image"].permute(0, 2, 3, 1).cpu().numpy().round().astype(np.uint8)
    shifts, focal, centre = far_camera(prediction.cam.cpu().numpy(), images.shape[1])
    meshes, truth = (m.cpu().numpy() + shifts[:, None] for m in (prediction.mesh, truth))
    return [Person(image, focal, np.array(centre), *pair) for image, *pair in zip(images, meshes, truth, strict=True)]


def _to_jpeg(image: np.ndarray) -> bytes:
    """The file content of an RGB image (H, W, 3) uint8."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
