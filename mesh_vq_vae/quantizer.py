"""Vector quantizers: an EMA codebook (van den Oord et al., NeurIPS 2017, appendix A.1) and a residual stack of them.

The defaults are the published rule. Two options fix its known weakness, codes that are never used: initialising the
codebook from data, and restarting dead codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_common.distributed import gather_rows, own_rows, share_from_first

_EPS = 1e-5  # Laplace smoothing of the cluster sizes


class Quantized(NamedTuple):
    """Result of a quantizer for latents (B, N, D)."""

    latents: Tensor  # (B, N, D) codes, with the gradient passed straight through
    indices: Tensor | None  # (B, N), or (B, N, R) from R residual quantizers; None where latents skip the codebook
    loss: Tensor  # scalar: commitment
    perplexity: Tensor  # scalar: exp(entropy of the mean assignment)


def perplexity(counts: Tensor) -> Tensor:
    """How evenly codes are used: exp(entropy), from 1 to K, of their counts (K,)."""
    share = counts / counts.sum()
    return torch.exp(-(share * torch.log(share + 1e-10)).sum())


class VectorQuantizerEMA(nn.Module):
    """Nearest-code quantizer whose codebook follows an exponential moving average of the latents.

    Args:
        n_codes: K.
        dim: D.
        commitment: weight of the squared distance between latent and code.
        decay: share of the old value that a moving average keeps at each step.
        restart_below: a code whose moving count falls below this is moved to a random latent of the batch; 0 for never
            (published).
        start_from_data: initialise the codebook from latents of the first training batch, not from random normal
            numbers (published).
    """

    def __init__(
        self,
        n_codes: int,
        dim: int,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart_below: float = 0.0,
        start_from_data: bool = False,
    ):
        super().__init__()
        self.commitment, self.decay = commitment, decay
        self.restart_below, self.start_from_data = restart_below, start_from_data
        self._embedding = nn.Embedding(n_codes, dim)
        self._embedding.weight.requires_grad_(False)  # follows averages, not gradients
        self.register_buffer("_ema_cluster_size", torch.zeros(n_codes))
        # A parameter because it is one in the released files; no optimizer changes it.
        self._ema_w = nn.Parameter(torch.randn(n_codes, dim), requires_grad=False)

    @property
    def codebook(self) -> Tensor:
        """(K, D)."""
        return self._embedding.weight

    def forward(self, z: Tensor) -> Quantized:
        """Latents (B, N, D) -> `Quantized`. In training mode the codebook is then updated.

        Codebook and perplexity follow the latents of all processes together, and are the same on each.
        """
        latents = z.detach().flatten(0, -2)  # (B*N, D)
        if self.training:
            latents = gather_rows(latents)  # (W*B*N, D)
            if self.start_from_data and not self._ema_cluster_size.any():
                self._place(torch.ones_like(self._ema_cluster_size, dtype=torch.bool), latents, 1.0)
        assigned = self.assign(latents)
        indices = (own_rows(assigned) if self.training else assigned).view(z.shape[:-1])
        codes = self.lookup(indices)
        counts = torch.bincount(assigned, minlength=len(self.codebook)).to(z.dtype)
        loss = self.commitment * F.mse_loss(z, codes)
        if self.training:
            self._update(latents, assigned, counts)
        return Quantized(z + (codes - z).detach(), indices, loss, perplexity(counts))

    def assign(self, latents: Tensor) -> Tensor:
        """Nearest codes (…) of latents (…, D); the first index wins a tie."""
        with torch.autocast(latents.device.type, enabled=False):  # bfloat16 cannot tell close codes apart
            products = latents @ self.codebook.t()
        distances = latents.square().sum(-1, keepdim=True) + self.codebook.square().sum(1) - 2 * products
        return distances.argmin(-1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes (…, D) of indices (…)."""
        return F.embedding(indices, self.codebook)

    @torch.no_grad()
    def _update(self, latents: Tensor, assigned: Tensor, counts: Tensor) -> None:
        size = self._ema_cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        total = size.sum()
        size.add_(_EPS).div_(total + len(size) * _EPS).mul_(total)
        sums = torch.zeros_like(self._ema_w).index_add_(0, assigned, latents)
        self._ema_w.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.codebook.copy_(self._ema_w / size[:, None])
        if self.restart_below > 0:
            # Twice the threshold gives a restarted code time to attract latents before it counts as dead again.
            self._place(size < self.restart_below, latents, 2 * self.restart_below)
        # A GPU sums in any order: without this the codebooks of the processes would drift apart.
        share_from_first(self.codebook, self._ema_w, self._ema_cluster_size)

    def _place(self, which: Tensor, latents: Tensor, size: float) -> None:
        """Move the codes `which` (K,) to random latents, with a count of `size` each."""
        picked = latents[torch.randint(len(latents), (int(which.sum()),), device=latents.device)]
        self.codebook[which] = picked
        self._ema_w[which] = picked * size
        self._ema_cluster_size[which] = size


class ResidualQuantizer(nn.Module):
    """A stack of quantizers, each of which quantizes the residual of those before (Lee et al., CVPR 2022).

    Args:
        n_quantizers: R.
        shared_codebook: one codebook for all R.
        quantizer: arguments of `VectorQuantizerEMA`.
    """

    def __init__(self, n_quantizers: int, shared_codebook: bool = False, **quantizer):
        super().__init__()
        first = VectorQuantizerEMA(**quantizer)
        rest = [first if shared_codebook else VectorQuantizerEMA(**quantizer) for _ in range(n_quantizers - 1)]
        self.layers = nn.ModuleList([first, *rest])

    def forward(self, z: Tensor) -> Quantized:
        """Latents (B, N, D) -> `Quantized` with indices (B, N, R); loss and perplexity are sums over the stack."""
        left, results = z, []
        for layer in self.layers:
            results.append(layer(left))
            left = left - results[-1].latents.detach()
        latents, indices, loss, perplexity = zip(*results, strict=True)
        return Quantized(sum(latents), torch.stack(indices, -1), sum(loss), sum(perplexity))

    def assign(self, latents: Tensor) -> Tensor:
        """Nearest codes (…, R) of latents (…, D)."""
        indices = []
        for layer in self.layers:
            indices.append(layer.assign(latents))
            latents = latents - layer.lookup(indices[-1])
        return torch.stack(indices, -1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes (B, N, D) of indices (B, N, r): the sum over the first r of the R quantizers."""
        return torch.stack([self.layers[r].lookup(column) for r, column in enumerate(indices.unbind(-1))]).sum(0)
