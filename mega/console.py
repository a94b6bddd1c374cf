"""Tables and times on the console, for every script."""

import io
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def print_anything() -> None:
    """Print a question mark for what the encoding of the standard output lacks (ASCII: ─, ×, é), instead of failing.

    The standard error does not fail: Python escapes such characters there.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


class Stopwatch:
    """Seconds by stage: `with watch("read"): …` adds the time spent inside to `watch.seconds["read"]`."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, markdown: bool = False) -> str:
    """Cells in aligned columns.

    Args:
        header: the columns' titles.
        rows: cells of each row, as many as there are columns.
        left: how many columns are aligned to the left; the others are aligned to the right.
        markdown: as a Markdown table instead of plain text.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if c < left else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |" if markdown else "  ".join(aligned)

    rule = "─" * len(line(header))
    if markdown:
        marks = ("-" * (width + 2) if c < left else "-" * (width + 1) + ":" for c, width in enumerate(widths))
        rule = f"|{'|'.join(marks)}|"
    return "\n".join([line(header), rule, *map(line, rows)])


def format_number(value: float, decimals: int = 1, sign: bool = False) -> str:
    """A number with fixed decimals; an en dash where it is not known (NaN)."""
    if not math.isfinite(value):
        return "–"
    return f"{round(value, decimals) + 0.0:{'+' if sign else ''}.{decimals}f}"  # + 0.0: no -0.0
