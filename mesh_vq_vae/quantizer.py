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


class Quantized(NamedTuple):
    """Result of a quantizer for latents (B, N, D)."""

    latents: Tensor  # (B, N, D) codes, with the gradient passed straight through
    indices: Tensor  # (B, N), or (B, N, R) from R residual quantizers
    loss: Tensor  # scalar: commitment
    perplexity: Tensor  # scalar: exp(entropy of the mean assignment)


class VectorQuantizerEMA(nn.Module):
    """Nearest-code quantizer whose codebook follows an exponential moving average of the latents.

    Args:
        n_codes: K.
        dim: D.
        commitment: weight of the squared distance between latent and code.
        decay: of the moving averages.
        eps: Laplace smoothing of the cluster sizes.
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
        eps: float = 1e-5,
        restart_below: float = 0.0,
        start_from_data: bool = False,
    ):
        super().__init__()
        self.commitment, self.decay, self.eps = commitment, decay, eps
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
        flat = z.detach().reshape(-1, z.shape[-1])  # (B*N, D)
        if self.training:
            flat = gather_rows(flat)  # (W*B*N, D)
        if self.training and self.start_from_data and not self._ema_cluster_size.any():
            self._start(flat)
        assigned = self.assign(flat)
        indices = own_rows(assigned) if self.training else assigned
        codes = F.embedding(indices, self.codebook).view_as(z)
        counts = torch.bincount(assigned, minlength=len(self.codebook)).to(flat.dtype)
        share = counts / counts.sum()
        perplexity = torch.exp(-(share * torch.log(share + 1e-10)).sum())
        loss = self.commitment * F.mse_loss(z, codes)
        if self.training:
            self._step(flat, assigned, counts)
        return Quantized(z + (codes - z).detach(), indices.view(z.shape[:-1]), loss, perplexity)

    def assign(self, flat: Tensor) -> Tensor:
        """Nearest code (M,) of latents (M, D); the first index wins a tie."""
        with torch.autocast(flat.device.type, enabled=False):  # bfloat16 cannot tell close codes apart
            products = flat @ self.codebook.t()
        distances = flat.square().sum(1, keepdim=True) + self.codebook.square().sum(1) - 2 * products
        return distances.argmin(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes (…, D) of indices (…)."""
        return F.embedding(indices, self.codebook)

    @torch.no_grad()
    def _step(self, flat: Tensor, indices: Tensor, counts: Tensor) -> None:
        size = self._ema_cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        total = size.sum()
        size.add_(self.eps).div_(total + len(size) * self.eps).mul_(total)
        sums = torch.zeros_like(self._ema_w).index_add_(0, indices, flat)
        self._ema_w.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.codebook.copy_(self._ema_w / size[:, None])
        if self.restart_below > 0:
            self._restart(flat, size < self.restart_below)
        # A GPU sums in any order: without this the codebooks of the processes would drift apart.
        share_from_first(self.codebook, self._ema_w, self._ema_cluster_size)

    @torch.no_grad()
    def _start(self, flat: Tensor) -> None:
        self._place(torch.ones(len(self.codebook), dtype=torch.bool, device=flat.device), flat, 1.0)

    @torch.no_grad()
    def _restart(self, flat: Tensor, dead: Tensor) -> None:
        # Twice the threshold gives a restarted code time to attract latents before it counts as dead again.
        if dead.any():
            self._place(dead, flat, 2 * self.restart_below)

    def _place(self, which: Tensor, flat: Tensor, size: float) -> None:
        """Move the codes `which` (K,) to random latents, with a count of `size` each."""
        n = int(which.sum())
        picked = flat[torch.randint(len(flat), (n,), device=flat.device)]
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
        left, total, results = z, torch.zeros_like(z), []
        for layer in self.layers:
            result = layer(left)
            left = left - result.latents.detach()
            total = total + result.latents
            results.append(result)
        return Quantized(
            total,
            torch.stack([r.indices for r in results], -1),
            torch.stack([r.loss for r in results]).sum(),
            torch.stack([r.perplexity for r in results]).sum(),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes (B, N, D) of indices (B, N, r): the sum over the first r of the R quantizers."""
        return torch.stack([self.layers[r].lookup(column) for r, column in enumerate(indices.unbind(-1))]).sum(0)
