"""Several data sets as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset


class Mixture(Dataset):
    """Items of several data sets, each with "part" besides: the number of the set that it is from.

    Args:
        parts: the data sets.
        part_of, row_of: (n,) which row of which part each item is.
    """

    def __init__(self, parts: Sequence[Dataset], part_of: np.ndarray, row_of: np.ndarray):
        self.parts, self.part_of, self.row_of = parts, part_of, row_of

    def __len__(self) -> int:
        return len(self.row_of)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        part = int(self.part_of[index])
        return self.parts[part][int(self.row_of[index])] | {"part": part}

    @classmethod
    def drawn(cls, parts: Sequence[Dataset], shares: Sequence[float], epoch: int, seed: int) -> Mixture:
        """An epoch as long as the longest part; each item's part is drawn with a probability proportional to its share.

        Within a part no row is taken twice before all have been taken once. The draw is a function of (seed, epoch);
        the parts' `epoch` is set.
        """
        for part in parts:
            part.epoch = epoch
        rng = np.random.default_rng((seed, epoch))
        chances = np.asarray(shares, np.float64)
        part_of = rng.choice(len(parts), max(map(len, parts)), p=chances / chances.sum())
        row_of = np.empty_like(part_of)
        for number, part in enumerate(parts):
            own = part_of == number
            row_of[own] = _draw(len(part), own.sum(), rng)
        return cls(parts, part_of, row_of)

    @classmethod
    def one_after_another(cls, parts: Sequence[Dataset]) -> Mixture:
        """Every row of every part once."""
        lengths = [len(part) for part in parts]
        return cls(parts, np.repeat(np.arange(len(parts)), lengths), np.concatenate([np.arange(n) for n in lengths]))


def _draw(n_rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n of n_rows rows; none twice before all have been taken once."""
    rounds = [rng.permutation(n_rows) for _ in range(-(-n // n_rows))]
    return np.concatenate([*rounds, np.empty(0, np.int64)])[:n]
