"""Tables and times on the console, for every script."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


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
    separator = " | " if markdown else "  "

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if c < left else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        text = separator.join(aligned)
        return f"| {text} |" if markdown else text

    rule = "─" * len(line(header))
    if markdown:
        marks = ["-" * max(width, 3) if c < left else "-" * max(width - 1, 2) + ":" for c, width in enumerate(widths)]
        rule = f"| {separator.join(marks)} |"
    return "\n".join([line(header), rule, *map(line, rows)])
