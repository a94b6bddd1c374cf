"""Dropout that several processes can share."""

import torch
from torch import Tensor, nn

from mesh_vq_vae.distributed import draw_rows


class BatchDropout(nn.Module):
    """Dropout whose mask is drawn for the rows of all processes: a batch that is shared out is dropped from alike.

    Args:
        p: probability of being dropped.
        whole: drop all channels of a place, not single ones.
    """

    def __init__(self, p: float, whole: bool = False):
        super().__init__()
        self.p, self.whole = p, whole

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, D) -> the same shape; in eval mode unchanged."""
        if not self.training or self.p == 0:
            return x
        places = (*x.shape[1:-1], 1 if self.whole else x.shape[-1])
        keep = draw_rows(lambda n: torch.rand(n, *places, device=x.device), len(x)) >= self.p
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, whole={self.whole}"
