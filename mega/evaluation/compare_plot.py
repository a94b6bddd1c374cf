"""A comparison as dots with intervals."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mega.evaluation.compare import Comparison
from mega.evaluation.plots import BLUE, DPI, GREEN, GREY, ORANGE, PINK, SKY, VERMILION

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
