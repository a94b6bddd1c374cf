"""Curves of runs as a grid of panels: a quantity each, training and validation together, runs by colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from mega.training.logs import Curve

# Okabe & Ito's colours, which colour-blind people can tell apart, without yellow, which is faint on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", ":", "-.")
_GREY = "#555555"
_PANEL_INCHES = (3.9, 2.5)
DPI = 100

# What a quantity is measured in: a part of its name that says so, which then need not stand in the title.
_UNITS = {"_percent_of_box": "% of the box", "_percent": "%", "_degrees": "°", "_mm": "mm"}
_MILLIMETRES = ("PVE", "MPJPE")
_UNITS_OF_LOSSES = {"points": "m", "keypoints3d": "m", "cross_entropy": "nats", "tokens": "nats"}
_LEARNING_RATE = "learning_rate"
# Panels in this order: the loss, what is validated, all else, and these.
_LAST = (_LEARNING_RATE, "steps_per_second", "data_wait_percent")


@dataclass(frozen=True)
class Series:
    """A curve and where it is from: number of its run, and its part: train, val, or the name of a learning rate."""

    run: int
    part: str
    curve: Curve


def group(runs: Sequence[dict[str, Curve]]) -> dict[str, list[Series]]:
    """{quantity: its series}, a panel each: train/x, val/x belong to x, and all learning rates are together."""
    panels: dict[str, list[Series]] = {}
    for i, curves in enumerate(runs):
        for name, curve in curves.items():
            part, _, quantity = name.rpartition("/")
            if name.startswith("lr-"):
                part, quantity = name, _LEARNING_RATE
            panels.setdefault(quantity, []).append(Series(i, part, curve))

    def place(quantity: str) -> tuple:
        validated = any(series.part == "val" for series in panels[quantity])
        last = _LAST.index(quantity) + 1 if quantity in _LAST else 0
        return last, quantity != "loss", not validated, quantity.lower()

    return {quantity: panels[quantity] for quantity in sorted(panels, key=place)}


def choose(panels: dict[str, list[Series]], patterns: Sequence[str]) -> dict[str, list[Series]]:
    """The panels whose quantity fits one of the patterns (`PVE`, `PA-*`; case does not matter); all without any.

    Raises ValueError that lists the quantities when one of the patterns fits none.
    """
    if not panels or not patterns:
        return panels
    fits = {p: [q for q in panels if fnmatch(q.lower(), p.lower())] for p in patterns}
    if lost := [pattern for pattern, found in fits.items() if not found]:
        raise ValueError(f"No metric is called {' or '.join(lost)}. There are: {', '.join(panels)}.")
    return {quantity: series for quantity, series in panels.items() if any(quantity in f for f in fits.values())}


def title_and_unit(quantity: str) -> tuple[str, str]:
    """How a quantity is called in a picture, and what it is measured in ("" for a plain number)."""
    if any(name in quantity for name in _MILLIMETRES):
        return quantity.replace("_", " "), "mm"
    for part, unit in _UNITS.items():
        if quantity.endswith(part) or (part == "_mm" and "_mm_" in quantity):
            return quantity.replace(part, "", 1).replace("_", " "), unit
    return quantity.replace("_", " "), _UNITS_OF_LOSSES.get(quantity, "")


def draw(panels: dict[str, list[Series]], names: Sequence[str], smooth: float, log: bool, columns: int) -> Figure:
    """A grid of panels, a quantity each, with runs by colour and one legend.

    Args:
        panels: from `group`.
        names: of the runs, for the legend.
        smooth: weight of the moving average of training curves, see `Curve.smoothed`.
        log: whether values stand on a logarithmic scale (where all are positive).
        columns: at most so many panels beside one another.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    legend = _legend(panels, names)
    per_line = max(1, int(columns * _PANEL_INCHES[0] / (0.6 + 0.085 * max(len(line.get_label()) for line in legend))))
    head = 0.2 + 0.22 * math.ceil(len(legend) / per_line)  # inches
    height = rows * _PANEL_INCHES[1] + head
    figure = Figure((columns * _PANEL_INCHES[0], height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - head / height), w_pad=0.08, h_pad=0.08)
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for i, (ax, (quantity, series)) in enumerate(zip(axes, panels.items(), strict=False)):
        _draw_panel(ax, quantity, series, smooth, log)
        if i + columns >= len(panels):  # nothing below it
            ax.tick_params(labelbottom=True)
            ax.set_xlabel("step", fontsize=9, color=_GREY)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.legend(
        handles=legend, loc="upper left", bbox_to_anchor=(0.005, 1), ncols=per_line, frameon=False, fontsize=10
    )
    return figure


def _legend(panels: dict[str, list[Series]], names: Sequence[str]) -> list[Line2D]:
    lines = [Line2D([], [], color=color(i), ls=dashes(i), lw=2.5, label=name) for i, name in enumerate(names)]
    parts = {series.part for many in panels.values() for series in many}
    if "train" in parts:
        lines.append(Line2D([], [], color=_GREY, lw=1, label="training"))
    if "val" in parts:
        lines.append(Line2D([], [], color=_GREY, lw=1.8, marker="o", ms=4, label="validation"))
    return lines


def color(run: int) -> str:
    """The colour of a run by its number; after seven they begin again, with other `dashes`."""
    return _COLORS[run % len(_COLORS)]


def dashes(run: int) -> str:
    return _DASHES[run // len(_COLORS) % len(_DASHES)]


def _draw_panel(ax: Axes, quantity: str, series: Sequence[Series], smooth: float, log: bool) -> None:
    title, unit = title_and_unit(quantity)
    ax.set_title(f"{title} ({unit})" if unit else title, loc="left", fontsize=10.5, fontweight="bold")
    shown = []
    for one in series:
        steps, values, style = one.curve.steps, one.curve.values, {"color": color(one.run), "ls": dashes(one.run)}
        if one.part == "val":
            ax.plot(steps, values, lw=1.8, marker="o", ms=4, mec="white", mew=0.6, zorder=3, **style)
        elif one.part == "train":
            if smooth > 0:
                ax.plot(steps, values, lw=0.7, alpha=0.22, zorder=1, **style)
                values = one.curve.smoothed(smooth)
            ax.plot(steps, values, lw=1, marker="." if len(steps) == 1 else "", zorder=2, **style)
        else:
            ax.plot(steps, values, lw=1, zorder=2, **style)
            if one.run == series[0].run:
                top = int(np.argmax(values))
                name = one.part.rpartition("/")[2]
                ax.annotate(
                    name, (steps[top], values[top]), (3, 3), textcoords="offset points", fontsize=8, color=_GREY
                )
        shown.append(values)
    _scale(ax, np.concatenate(shown), log)
    ax.grid(color="#e4e4e4", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#bbbbbb")
    ax.tick_params(labelsize=9, color="#bbbbbb", labelcolor=_GREY)


def _scale(ax: Axes, shown: np.ndarray, log: bool) -> None:
    """Axes that fit what is shown; the faint unsmoothed curve may leave them, or its peaks would press all flat."""
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    shown = shown[np.isfinite(shown)]
    if len(shown) == 0:
        return
    low, high = shown.min(), shown.max()
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    if log and low > 0:
        margin = max(high / low, 1.1) ** 0.06
        ax.set_yscale("log")
        ax.set_ylim(low / margin, high * margin)
        # Powers of ten alone are too few for a curve that runs through less than one or two.
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else ticks)
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter("{x:g}")
        return
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    ax.set_ylim(low - margin, high + margin)
    ax.yaxis.set_major_locator(ticks)
