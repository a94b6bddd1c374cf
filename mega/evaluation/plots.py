"""Plots and pictures of an evaluation; each function returns None if its content was not measured.

`summary` is the one of `mega.evaluation.report`: "protocols", "columns", "joints", "calibration".
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mega.evaluation.statistics import METRICS, Results, protocols_of, shown_variants, variant_title
from mega.geometry import MM_PER_M
from mega.rendering import draw_body, draw_people, draw_side_view, draw_uncertainty, panel, people_openness
from mega.rendering.panels import color_bar, round_limit
from mega.rendering.shading import heat_colors, palette_colors

# Colours of Okabe & Ito, which colour-blind people can distinguish.
_BLUE, _VERMILION, _GREEN, _PINK, _SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
_GREY, _PALE = "#555555", "#cfe6f5"
_DPI = 110
_SHOWN_METRICS = METRICS[:3]
_PANEL = (3.7, 2.6)  # inches
_TICKS = {"nbins": 5, "steps": [1, 2, 2.5, 5, 10]}


def to_png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    return data.getvalue()


def error_histograms(results: Results) -> Figure | None:
    """Errors of the deterministic prediction: one row per protocol, one plot per metric, lines at mean and median.

    With more than 100 people the last bar also counts all larger errors, and is then pale.
    """
    protocols = protocols_of(results)
    if not protocols:
        return None
    figure, axes = _grid(len(protocols), len(_SHOWN_METRICS), sharex="col")
    for row, protocol in zip(axes, protocols, strict=True):
        for ax, metric in zip(row, _SHOWN_METRICS, strict=True):
            values = _known(results.columns.get(f"deterministic/{protocol}/{metric}"))
            _style(ax, f"{metric}, {protocol}", "mm", "people")
            if len(values) == 0:
                continue
            # A few outliers would squeeze all others into one bar: count them in the last one.
            end = np.quantile(values, 0.99) if len(values) > 100 else values.max()
            bins = np.linspace(min(values.min(), 0), max(end, 1), min(40, 8 + len(values) // 10))
            _, _, bars = ax.hist(np.minimum(values, bins[-1]), bins, color=_SKY, edgecolor="white", lw=0.5)
            ax.tick_params(labelbottom=True)
            if values.max() > bins[-1]:
                bars[-1].set_facecolor(_PALE)
            for value, name, style in ((values.mean(), "mean", "-"), (np.median(values), "median", "--")):
                ax.axvline(value, color=_VERMILION, ls=style, lw=1.6, label=f"{name} {value:.0f} mm")
            ax.legend(frameon=False, fontsize=8.5)
    return figure


def sample_violins(results: Results, summary: dict) -> Figure | None:
    """Distribution of the errors for each way of using the samples, under the first protocol."""
    variants = shown_variants(results.columns)
    if len(variants) < 2:
        return None
    protocol = summary["protocols"][0]
    figure, axes = _grid(1, len(_SHOWN_METRICS), (_PANEL[0], 0.9 + 0.36 * len(variants)), sharey=True)
    for ax, metric in zip(axes[0], _SHOWN_METRICS, strict=True):
        _style(ax, f"{metric}, {protocol}", "mm", "")
        ends = []
        for i, variant in enumerate(variants):
            values = _known(results.columns.get(f"{variant}/{protocol}/{metric}"))
            _violin(ax, values, i, _color(variant))
            ends += [np.quantile(values, 0.99)] if len(values) else []
        ax.set_yticks(range(len(variants)), [variant_title(v) for v in variants])
        ax.set_ylim(len(variants) - 0.4, -0.6)
        ax.grid(False, axis="y")
        if ends:
            ax.set_xlim(0, 1.1 * max(max(ends), 1))
    return figure


def best_of_curves(results: Results, summary: dict) -> Figure | None:
    """Error of best of Q and mean of Q against Q, and of the deterministic prediction, under the first protocol."""
    variants = [v for v in shown_variants(results.columns) if v.startswith(("best_of_", "mean_of_"))]
    if len(variants) < 2:
        return None
    protocol, columns = summary["protocols"][0], summary["columns"]
    figure, axes = _grid(1, len(_SHOWN_METRICS), (_PANEL[0], 2.9))
    for ax, metric in zip(axes[0], _SHOWN_METRICS, strict=True):
        _style(ax, f"{metric}, {protocol}", "samples Q", "mm")
        counts = sorted({int(v.rpartition("_")[2]) for v in variants})
        for kind, color in (("best", _BLUE), ("mean", _GREEN)):
            known = [(q, c) for q in counts if (c := columns.get(f"{kind}_of_{q}/{protocol}/{metric}"))]
            q = [q for q, _ in known]
            low, mean, high = ([c[key] for _, c in known] for key in ("low", "mean", "high"))
            ax.fill_between(q, low, high, color=color, alpha=0.18, lw=0)
            ax.plot(q, mean, color=color, marker="o", ms=4, lw=1.6, label=f"{kind} of Q")
        if single := columns.get(f"deterministic/{protocol}/{metric}"):
            ax.axhspan(single["low"], single["high"], color=_VERMILION, alpha=0.14, lw=0)
            ax.axhline(single["mean"], color=_VERMILION, ls="--", lw=1.6, label="deterministic")
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(q) for q in counts])
        ax.minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def calibration_curves(summary: dict) -> Figure | None:
    """Mean error against mean spread in bins of equal size, for visible and hidden joints separately."""
    groups = summary["calibration"].get("joints", {})
    if not groups or not groups["all"]["curve"]:
        return None
    chosen = {name: groups[name] for name in ("visible", "hidden") if name in groups} or {"all": groups["all"]}
    figure, axes = _grid(1, 1, (5.4, 4.2))
    ax = axes[0, 0]
    _style(ax, "Does sample spread predict error?", "spread of the samples at a joint, mm", "error of the joint, mm")
    end = 0.0
    for (name, group), color, marker in zip(chosen.items(), (_BLUE, _VERMILION), "os", strict=False):
        curve = group["curve"]
        if not curve:
            continue
        x, y, low, high = (np.array([row[key] for row in curve]) for key in ("spread", "error", "low", "high"))
        end = max(end, x.max(), y.max())
        ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
        label = f"{name} joints, Spearman {group['spearman']['value']:.2f}"
        ax.plot(x, y, color=color, marker=marker, ms=4.5, lw=1.6, label=label)
    ax.plot([0, end], [0, end], color=_GREY, ls=":", lw=1.2, label="error = spread")
    ax.set_xlim(0)
    ax.set_ylim(0)
    ax.legend(frameon=False, fontsize=9)
    return figure


def joint_bars(summary: dict) -> Figure | None:
    """Mean error of each joint, with intervals; dots for visible and hidden ones."""
    joints = summary["joints"]
    if not joints:
        return None
    names = list(joints)
    mean, low, high, visible, hidden = (
        np.array([joints[name][key] for name in names]) for key in ("mean", "low", "high", "visible", "hidden")
    )
    figure, axes = _grid(1, 1, (7.4, 1.1 + 0.25 * len(names)))
    ax = axes[0, 0]
    _style(ax, "Error per joint", "mm", "")
    place = np.arange(len(names))
    bars = np.nan_to_num(np.stack([mean - low, high - mean]))
    ax.barh(place, mean, 0.7, color=_PALE, xerr=bars, error_kw={"ecolor": _GREY, "lw": 1})
    for values, name, color, marker in ((visible, "visible", _BLUE, "o"), (hidden, "hidden", _VERMILION, "s")):
        if np.isfinite(values).any():
            ax.plot(values, place, marker, color=color, ms=5, mec="white", mew=0.6, label=name)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    ax.set_yticks(place, [name.replace("_", " ") for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")
    return figure


def _grid(rows: int, columns: int, panel: tuple[float, float] = _PANEL, **options) -> tuple[Figure, np.ndarray]:
    figure = Figure((columns * panel[0], rows * panel[1]), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _style(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    ax.set_xlabel(x, fontsize=9, color=_GREY)
    ax.set_ylabel(y, fontsize=9, color=_GREY)
    ax.grid(color="#e4e4e4", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#bbbbbb")
    ax.tick_params(labelsize=9, color="#bbbbbb", labelcolor=_GREY)
    ax.xaxis.set_major_locator(MaxNLocator(**_TICKS))
    ax.yaxis.set_major_locator(MaxNLocator(**_TICKS, integer=y == "people"))


def _violin(ax: Axes, values: np.ndarray, place: int, color: str) -> None:
    """A violin with quartiles and median; single dots for too few people."""
    if len(values) < 5 or np.ptp(values) == 0:
        ax.plot(values, np.full(len(values), place), "o", color=color, ms=4, alpha=0.7)
        return
    end = np.quantile(values, 0.995)
    drawn = ax.violinplot([values[values <= end]], [place], orientation="horizontal", widths=0.85, showextrema=False)
    for body in drawn["bodies"]:
        body.set(facecolor=color, edgecolor=color, alpha=0.35)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    ax.plot([low, high], [place, place], color=color, lw=3, solid_capstyle="butt")
    ax.plot(middle, place, "o", color="white", mec=color, mew=1.4, ms=5)


def _color(variant: str) -> str:
    kinds = {"best_of": _BLUE, "mean_of": _GREEN, "likeliest_of": _PINK}
    return _GREY if variant.endswith("_of_1") else kinds.get(variant.rpartition("_")[0], _VERMILION)


def _known(values: Sequence[float] | None) -> np.ndarray:
    values = np.asarray([] if values is None else values, float)
    return values[np.isfinite(values)]


_BODY_HEIGHT, _EXAMPLE_SIDE, _PERSON_SIDE = 560, 260, 384  # px


def draw_errors_on_body(results: Results, faces: np.ndarray, template: np.ndarray) -> np.ndarray | None:
    """The template (V, 3) m, Y up, front and back, coloured by the mean error of each vertex, and by its spread.

    Returns:
        (H, W, 3) uint8, or None without per-vertex errors.
    """
    cells = []
    for name, values in (("error", results.vertex_error), ("spread", results.vertex_spread)):
        if values is None or not np.isfinite(values).any():
            continue
        metres = np.nan_to_num(np.asarray(values, float)) / MM_PER_M
        limit = round_limit(metres)
        colors = heat_colors(metres, limit)[None]
        for side in ("front", "back"):
            cells.append((draw_body(template, faces, _BODY_HEIGHT, colors, side == "back"), f"{name}, {side}"))
        cells.append((color_bar(_BODY_HEIGHT, limit), ""))
    return panel([cells]) if cells else None


def draw_examples(examples: Sequence[dict], faces: np.ndarray) -> np.ndarray | None:
    """One row per example: crop, truth, prediction, prediction coloured by error, and both from the side.

    Args:
        examples: "title": text; "image": (S, S, 3) uint8 RGB; "prediction", "truth": (V, 3) m, in the camera frame of
            the crop; "focal": px; "centre": (2,) px, principal point.
        faces: (F, 3).

    Returns:
        (H, W, 3) uint8, or None without examples. All rows have the same colour scale.
    """
    if not examples:
        return None
    errors = [_centred_error(example["prediction"], example["truth"]) for example in examples]
    limit = round_limit(np.concatenate(errors))
    rows = [_example_row(example, faces, error, limit) for example, error in zip(examples, errors, strict=True)]
    return panel(rows)


def _example_row(example: dict, faces: np.ndarray, error: np.ndarray, limit: float) -> list:
    truth, prediction = example["truth"][None], example["prediction"][None]
    picture, camera = _enlarged(example, _EXAMPLE_SIDE)
    heat = heat_colors(error, limit)[None]
    paper = np.full_like(picture, 244)
    light = people_openness(prediction, faces)
    colors = palette_colors(2)
    side = draw_side_view(np.concatenate([truth, prediction]), faces, _EXAMPLE_SIDE, colors)
    return [
        (picture, example["title"]),
        (draw_people(picture, truth, faces, *camera, colors[:1]), "truth"),
        (draw_people(picture, prediction, faces, *camera, colors[1:], light), "prediction"),
        (draw_people(paper, prediction, faces, *camera, heat, light), "error"),
        (color_bar(_EXAMPLE_SIDE, limit), ""),
        (side, "both from the side"),  # last, since its width differs
    ]


def draw_person(person: dict, faces: np.ndarray) -> np.ndarray:
    """Crop, prediction in place and from the side, and the spread of the samples at each vertex.

    Args:
        person: "image", "prediction", "focal", "centre": as in `draw_examples`; "title", "errors": captions; "spread":
            (V,) m, standard deviation over the samples, or None without samples.
        faces: (F, 3).

    Returns:
        (H, W, 3) uint8.
    """
    prediction = person["prediction"][None]
    picture, camera = _enlarged(person, _PERSON_SIDE)
    light = people_openness(prediction, faces)
    cells = [
        (picture, person["title"]),
        (draw_people(picture, prediction, faces, *camera, open_share=light), person["errors"]),
        (draw_side_view(prediction, faces, _PERSON_SIDE, open_share=light), "from the side"),
    ]
    if person["spread"] is not None:
        heat = draw_uncertainty(picture, prediction, faces, *camera, person["spread"][None], light)
        cells.append((heat, f"standard deviation of the samples, mean {MM_PER_M * person['spread'].mean():.1f} mm"))
    return panel([cells])


def _enlarged(example: dict, side: int) -> tuple[np.ndarray, tuple[float, np.ndarray]]:
    """The crop enlarged to a height of `side` px, and (focal length, principal point) in its pixels."""
    image = example["image"]
    scale = side / image.shape[0]
    picture = cv2.resize(image, (round(image.shape[1] * scale), side), interpolation=cv2.INTER_CUBIC)
    # Pixel centres lie at whole numbers, so the corner at -0.5 is what stays in place.
    return picture, (example["focal"] * scale, (np.asarray(example["centre"]) + 0.5) * scale - 0.5)


def to_jpeg(image: np.ndarray) -> bytes:
    """The file content of an RGB image (H, W, 3) uint8."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def _centred_error(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(V,) m, after both meshes (V, 3) are centred on their vertices."""
    return np.linalg.norm((prediction - prediction.mean(0)) - (truth - truth.mean(0)), axis=1)
