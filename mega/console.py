"""Time by stage, and the table at the end of a run."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("read", "detect", "predict", "decode", "draw", "write")


@dataclass
class Timings:
    """Seconds by stage of one picture."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


class Stopwatch:
    """Seconds by stage: `with stopwatch("loading"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, markdown: bool = False) -> str:
    """A table whose columns line up: the first `left` columns are aligned left, the others right."""
    widths = [max(len(row[c]) for row in (header, *rows)) for c in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if c < left else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    if markdown:
        rule = "|".join("-" * (w + 2) if c < left else "-" * (w + 1) + ":" for c, w in enumerate(widths))
        rule = f"|{rule}|"
    else:
        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(header), rule, *map(line, rows)])


def format_number(value: float, decimals: int = 1, sign: bool = False) -> str:
    """A number with fixed decimals; an en dash where it is not known (NaN)."""
    if not math.isfinite(value):
        return "–"
    return f"{round(value, decimals) + 0.0:{'+' if sign else ''}.{decimals}f}"  # + 0.0: no -0.0


@dataclass(frozen=True)
class Done:
    """A picture that was worked through."""

    picture: str
    people: int
    timings: Timings


def format_timings(done: Sequence[Done]) -> str:
    """Picture, people and milliseconds a person by stage; a last line over all pictures.

    A picture without people shows the milliseconds of the picture.
    """
    rows = [_cells(d.picture, d.people, d.timings.seconds) for d in done]
    total = {stage: sum(d.timings.seconds.get(stage, 0) for d in done) for stage in STAGES}
    footer = _cells(f"all {len(done)}", sum(d.people for d in done), total)
    header = ["picture", "people", *STAGES, "total"]
    widths = [max(len(row[c]) for row in [header, footer, *rows]) for c in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if c == 0 else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others])

    rule = "─" * len(line(header))
    title = " " * (widths[0] + widths[1] + 4) + "ms a person"
    return "\n".join([title, line(header), rule, *map(line, rows), rule, line(footer)])


def _cells(name: str, people: int, seconds: dict[str, float]) -> list[str]:
    spent = [1000 * seconds.get(stage, 0) / max(people, 1) for stage in STAGES]
    return [name, str(people), *(f"{ms:.0f}" for ms in [*spent, sum(spent)])]
