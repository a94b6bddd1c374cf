"""Time and peak memory of a piece of work, comparable between machines and while other programs run.

The published implementation was timed on a quiet machine on which a 2048 x 2048 x 2048 float32 matrix product takes
0.048 s (2026-11-22, 2 cores of an AMD EPYC, torch 2.14.1, float32, made-up weights of the same size). That product is
timed in turn with the work here, and the published time is scaled by it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

PUBLISHED_PRODUCT = 0.048  # s


class Timing(NamedTuple):
    seconds: float  # of the work
    product: float  # seconds of the matrix product
    peak: float  # GB that the process had in memory up to now

    def published(self, seconds: float) -> float:
        """Seconds of the published implementation, scaled to this machine at this time."""
        return seconds * self.product / PUBLISHED_PRODUCT


def timed(work: Callable[[], object], repeats: int) -> Timing:
    """Medians over `repeats` runs of `work` and of the matrix product, in turn, after a run of each to warm up."""
    matrix = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        work()
        middle = time.perf_counter()
        matrix @ matrix
        times.append((middle - start, time.perf_counter() - middle))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Timing(*map(median, zip(*times[1:], strict=True)), peak)


def machine() -> str:
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}"
