"""Plots of an evaluation in one style; each returns a figure, or None where what it shows is not known.

`summary` is what `mega.evaluation.report.write_report` gathers: "protocols", "columns", "joints", "calibration".
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mega.evaluation.results import METRICS, Results
from mega.evaluation.summary import protocols_of
from mega.evaluation.text import shown_variants, variant_title

# Okabe & Ito's colours, which colour-blind people can tell apart.
BLUE, VERMILION, GREEN, PINK, SKY, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GREY, _PALE = "#555555", "#cfe6f5"
DPI = 110
_SHOWN_METRICS = METRICS[:3]
_PANEL = (3.7, 2.6)  # inches
_TICKS = {"nbins": 5, "steps": [1, 2, 2.5, 5, 10]}


def to_png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    return data.getvalue()


def error_histograms(results: Results) -> Figure | None:
    """Errors of the deterministic prediction: a row a protocol, a panel a metric, with lines at mean and median.

    The last bar of more than 100 people counts all who are beyond it, too, and is pale.
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
            # A few wild errors would press the others into one bar: they are counted in the last one.
            end = np.quantile(values, 0.99) if len(values) > 100 else values.max()
            bins = np.linspace(min(values.min(), 0), max(end, 1), min(40, 8 + len(values) // 10))
            _, _, bars = ax.hist(np.minimum(values, bins[-1]), bins, color=SKY, edgecolor="white", lw=0.5)
            ax.tick_params(labelbottom=True)
            if values.max() > bins[-1]:
                bars[-1].set_facecolor(_PALE)
            for value, name, style in ((values.mean(), "mean", "-"), (np.median(values), "median", "--")):
                ax.axvline(value, color=VERMILION, ls=style, lw=1.6, label=f"{name} {value:.0f} mm")
            ax.legend(frameon=False, fontsize=8.5)
    return figure


def sample_violins(results: Results, summary: dict) -> Figure | None:
    """The spread of people's errors by what is made of the samples, of the first protocol."""
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
    """Best of Q and mean of Q against Q, and the deterministic prediction's error, of the first protocol."""
    variants = [v for v in shown_variants(results.columns) if v.startswith(("best_of_", "mean_of_"))]
    if len(variants) < 2:
        return None
    protocol, columns = summary["protocols"][0], summary["columns"]
    figure, axes = _grid(1, len(_SHOWN_METRICS), (_PANEL[0], 2.9))
    for ax, metric in zip(axes[0], _SHOWN_METRICS, strict=True):
        _style(ax, f"{metric}, {protocol}", "samples Q", "mm")
        counts = sorted({int(v.rpartition("_")[2]) for v in variants})
        for kind, color in (("best", BLUE), ("mean", GREEN)):
            known = [(q, c) for q in counts if (c := columns.get(f"{kind}_of_{q}/{protocol}/{metric}"))]
            q = [q for q, _ in known]
            low, mean, high = ([c[key] for _, c in known] for key in ("low", "mean", "high"))
            ax.fill_between(q, low, high, color=color, alpha=0.18, lw=0)
            ax.plot(q, mean, color=color, marker="o", ms=4, lw=1.6, label=f"{kind} of Q")
        if single := columns.get(f"deterministic/{protocol}/{metric}"):
            ax.axhspan(single["low"], single["high"], color=VERMILION, alpha=0.14, lw=0)
            ax.axhline(single["mean"], color=VERMILION, ls="--", lw=1.6, label="deterministic")
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(q) for q in counts])
        ax.minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def calibration_curves(summary: dict) -> Figure | None:
    """Mean error against mean spread, in bins of equal counts: all joints; and visible and hidden ones apart."""
    groups = summary["calibration"].get("joints", {})
    if not groups or not groups["all"]["curve"]:
        return None
    chosen = {name: groups[name] for name in ("visible", "hidden") if name in groups} or {"all": groups["all"]}
    figure, axes = _grid(1, 1, (5.4, 4.2))
    ax = axes[0, 0]
    _style(ax, "Does the spread tell the error?", "spread of the samples at a joint, mm", "error of the joint, mm")
    end = 0.0
    for (name, group), color, marker in zip(chosen.items(), (BLUE, VERMILION), "os", strict=False):
        curve = group["curve"]
        if not curve:
            continue
        x, y, low, high = (np.array([row[key] for row in curve]) for key in ("spread", "error", "low", "high"))
        end = max(end, x.max(), y.max())
        ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
        label = f"{name} joints, Spearman {group['spearman']['value']:.2f}"
        ax.plot(x, y, color=color, marker=marker, ms=4.5, lw=1.6, label=label)
    ax.plot([0, end], [0, end], color=GREY, ls=":", lw=1.2, label="error = spread")
    ax.set_xlim(0)
    ax.set_ylim(0)
    ax.legend(frameon=False, fontsize=9)
    return figure


def joint_bars(summary: dict) -> Figure | None:
    """Mean error by joint, with intervals; points where it is seen and where hidden."""
    joints = summary["joints"]
    if not joints:
        return None
    names = list(joints)
    mean, low, high, visible, hidden = (
        np.array([joints[name][key] for name in names]) for key in ("mean", "low", "high", "visible", "hidden")
    )
    figure, axes = _grid(1, 1, (7.4, 1.1 + 0.25 * len(names)))
    ax = axes[0, 0]
    _style(ax, "Error by joint", "mm", "")
    place = np.arange(len(names))
    bars = np.nan_to_num(np.stack([mean - low, high - mean]))
    ax.barh(place, mean, 0.7, color=_PALE, xerr=bars, error_kw={"ecolor": GREY, "lw": 1})
    for values, name, color, marker in ((visible, "where seen", BLUE, "o"), (hidden, "where hidden", VERMILION, "s")):
        if np.isfinite(values).any():
            ax.plot(values, place, marker, color=color, ms=5, mec="white", mew=0.6, label=name)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    ax.set_yticks(place, [name.replace("_", " ") for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")
    return figure


def _grid(rows: int, columns: int, panel: tuple[float, float] = _PANEL, **options) -> tuple[Figure, np.ndarray]:
    figure = Figure((columns * panel[0], rows * panel[1]), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _style(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    ax.set_xlabel(x, fontsize=9, color=GREY)
    ax.set_ylabel(y, fontsize=9, color=GREY)
    ax.grid(color="#e4e4e4", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#bbbbbb")
    ax.tick_params(labelsize=9, color="#bbbbbb", labelcolor=GREY)
    ax.xaxis.set_major_locator(MaxNLocator(**_TICKS))
    ax.yaxis.set_major_locator(MaxNLocator(**_TICKS, integer=y == "people"))


def _violin(ax: Axes, values: np.ndarray, place: int, color: str) -> None:
    """A violin with quartiles and median; of people too few for one, their points."""
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
    kinds = {"best_of": BLUE, "mean_of": GREEN, "likeliest_of": PINK}
    return GREY if variant.endswith("_of_1") else kinds.get(variant.rpartition("_")[0], VERMILION)


def _known(values: Sequence[float] | None) -> np.ndarray:
    values = np.asarray([] if values is None else values, float)
    return values[np.isfinite(values)]
