"""Several data sets as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset


class Mixture(Dataset):
    """Several data sets as one epoch: of each its share, drawn anew every epoch; whole where no shares are given.

    Args:
        parts: the data sets; each gets the `epoch`.
        shares: of the epoch's items, in the order of the parts; None takes every item of every part once.
        epoch, seed: of the draw. The epoch's length is that of all parts together.

    Its items also have "part", whose item it is.
    """

    def __init__(self, parts: Sequence[Dataset], shares: Sequence[float] | None, epoch: int = 0, seed: int = 0):
        self.parts = parts
        for part in parts:
            part.epoch = epoch
        total = sum(map(len, parts))
        if shares is None:
            counts, rows = [len(part) for part in parts], [np.arange(len(part)) for part in parts]
        else:
            counts = [round(total * share / sum(shares)) for share in shares]
            rng = np.random.default_rng((seed, epoch))
            rows = [_draw(len(part), n, rng) for part, n in zip(parts, counts, strict=True)]
        self.part_of = np.repeat(np.arange(len(parts)), counts)
        self.row_of = np.concatenate(rows)

    def __len__(self) -> int:
        return len(self.row_of)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        part = int(self.part_of[index])
        return self.parts[part][int(self.row_of[index])] | {"part": part}


def _draw(n_rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n of n_rows rows; none twice before all have been taken once."""
    rounds = [rng.permutation(n_rows) for _ in range(-(-n // n_rows))]
    return np.concatenate([*rounds, np.empty(0, np.int64)])[:n]
