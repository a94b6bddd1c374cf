"""Graph convolutions over a mesh, and the autoencoder that is a pyramid of them (Zhou et al., NeurIPS 2020).

A layer maps (points_in, channels_in) to (points_out, channels_out) along one connection matrix and adds two paths:

    out = sqrt(1 - rho) * convolution + sqrt(rho) * residual            rho = the layer's residual rate

The convolution has a kernel of its own for every edge, a blend of W basis kernels. Building those kernels (out x in
numbers per edge) would make it slow. Here the neighbours are blended first, W times per output point, and the basis
kernels are applied to the blends:

    out[p] = sum_w weights[w] @ ( sum_m coefficients[p, m, w] * x[ids[p, m]] )

A few output points are computed at a time, so that gathered neighbours stay in the cache, and the backward pass gathers
them again instead of storing them. Output points are sorted by their number of neighbours, so padding is skipped.

Parameters have the released names (`weights0`, `w_weights0`, `p_neighbors1`, …), so released files load unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesh_vq_vae.hierarchy import Hierarchy, neighbours

# Floats gathered at a time: about 4 MB, the L2 cache of two cores; more on a GPU, to keep it busy.
CHUNK_FLOATS = {"cpu": 1 << 20, "cuda": 1 << 26}


def blend_and_mix(
    x: Tensor, ids: Tensor, coefficients: Tensor, weights: Tensor | None, counts: list[int] | None = None
) -> Tensor:
    """Graph convolution: blend neighbours W times, then mix channels.

    Args:
        x: features (I, B, C), points first.
        ids: neighbours (P, M) int64 of every output point; any valid id where padded.
        coefficients: (P, M, W), zero where padded.
        weights: basis kernels (W, O, C); None (and W = 1) for the weighted sum of neighbours alone, O = C.
        counts: number of neighbours of each output point, ascending, to skip padding; None for no padding.

    Returns: (P, B, O).
    """
    counts = counts or [ids.shape[1]] * len(ids)
    if weights is None:
        return _BlendAndMix.apply(x, ids, coefficients, None, counts)
    n_bases, out_channels, in_channels = weights.shape
    if n_bases * out_channels < in_channels:
        # All W products together are smaller than the features: mix first, then blend, one slot per (m, w) pair.
        mixed = x @ weights.flatten(0, 1).t()  # (I, B, W*O)
        mixed = mixed.unflatten(2, (n_bases, out_channels)).transpose(1, 2).flatten(0, 1)  # (I*W, B, O)
        slots = (ids[:, :, None] * n_bases + torch.arange(n_bases, device=ids.device)).flatten(1)  # (P, M*W)
        slot_counts = [n * n_bases for n in counts]
        return _BlendAndMix.apply(mixed, slots, coefficients.flatten(1)[:, :, None], None, slot_counts)
    mixer = weights.transpose(1, 2).flatten(0, 1)  # (W*C, O)
    return _BlendAndMix.apply(x, ids, coefficients, mixer, counts)


class _BlendAndMix(torch.autograd.Function):
    """x (I, B, C), ids (P, M), coefficients (P, M, W), mixer (W*C, O) or None -> (P, B, O), chunk by chunk."""

    @staticmethod
    def forward(ctx, x, ids, coefficients, mixer, counts):
        ctx.save_for_backward(x, ids, coefficients, mixer)
        ctx.counts = counts
        out = x.new_empty(len(ids), x.shape[1], x.shape[2] if mixer is None else mixer.shape[1])
        for part, n_slots in _chunks(counts, x):
            blends = _blend(x, ids[part, :n_slots], coefficients[part, :n_slots])
            out[part] = blends if mixer is None else blends @ mixer
        return out

    @staticmethod
    def backward(ctx, grad_out):
        x, ids, coefficients, mixer = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        grad_x, _, grad_coefficients, grad_mixer = (
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)
        )
        for part, n_slots in _chunks(ctx.counts, x):
            part_ids, part_coefficients = ids[part, :n_slots], coefficients[part, :n_slots]
            grad = grad_out[part]  # (p, B, O)
            if grad_mixer is not None:
                grad_mixer.addmm_(_blend(x, part_ids, part_coefficients).flatten(0, 1).t(), grad.flatten(0, 1))
            if mixer is not None:
                grad = grad @ mixer.t()  # (p, B, W*C)
            grad = grad.unflatten(2, (-1, x.shape[2])).transpose(1, 2).flatten(2)  # (p, W, B*C)
            if grad_coefficients is not None:
                gathered = F.embedding(part_ids, x.flatten(1))  # (p, M, B*C)
                grad_coefficients[part, :n_slots] = torch.bmm(gathered, grad.transpose(1, 2))
            if grad_x is not None:
                grad_neighbours = torch.bmm(part_coefficients, grad)  # (p, M, B*C)
                grad_x.flatten(1).index_add_(0, part_ids.flatten(), grad_neighbours.flatten(0, 1))
        return grad_x, None, grad_coefficients, grad_mixer, None


def _blend(x: Tensor, ids: Tensor, coefficients: Tensor) -> Tensor:
    """(I, B, C), (p, M), (p, M, W) -> (p, B, W*C): the W blends of each point, concatenated."""
    gathered = F.embedding(ids, x.flatten(1))  # (p, M, B*C)
    blends = torch.bmm(coefficients.transpose(1, 2), gathered)  # (p, W, B*C)
    return blends.unflatten(2, x.shape[1:]).transpose(1, 2).flatten(2)


def _chunks(counts: list[int], x: Tensor) -> Iterator[tuple[slice, int]]:
    """(output points, number of neighbour slots) of each piece of the work on features (I, B, C)."""
    if x.numel() == 0:  # an empty batch
        return
    limit = CHUNK_FLOATS.get(x.device.type, CHUNK_FLOATS["cuda"]) // x[0].numel()  # neighbours gathered at a time
    start = 0
    while start < len(counts):
        # Counts ascend, so the last point of a piece has the most neighbours: add points as long as all fit.
        stop = start + 1
        while stop < len(counts) and (stop + 1 - start) * counts[stop] <= limit:
            stop += 1
        yield slice(start, stop), counts[stop - 1]
        start = stop


class FullyConvAE(nn.Module):
    """Encoder and decoder layers in one list; the layers along "pool" matrices are the encoder.

    Args:
        hierarchy: connection matrices of the mesh.
        connections: the matrix of each layer, e.g. ["pool0", "pool1", "unpool1", "unpool0"].
        channels: output channels of each layer.
        n_bases: basis kernels W of each layer (0 where rho is 1).
        residual_rates: rho of each layer.
        init: "published" (scales of the released code) or "fan_in" (unit gain of every layer; trains much faster).
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        connections: Sequence[str],
        channels: Sequence[int],
        n_bases: Sequence[int],
        residual_rates: Sequence[float],
        init: str = "published",
    ):
        super().__init__()
        if not len(connections) == len(channels) == len(n_bases) == len(residual_rates):
            raise ValueError(
                "connections, channels, n_bases and residual_rates must have one entry per layer, got "
                f"{len(connections)}, {len(channels)}, {len(n_bases)} and {len(residual_rates)}"
            )
        if init not in ("published", "fan_in"):
            raise ValueError(f"unknown init '{init}': choose published or fan_in")
        self.encoder_depth = sum(name.startswith("pool") for name in connections)
        self.n_bases, self.residual_rates = n_bases, residual_rates
        self.channels = [3, *channels]  # layer i maps channels[i] to channels[i + 1] and points[i] to points[i + 1]
        self.points = [hierarchy.n_vertices, *(len(hierarchy[name]) for name in connections)]
        self._counts: list[list[int]] = []  # neighbours of each layer's output points, ascending
        for i, name in enumerate(connections):
            ids, mask = neighbours(hierarchy[name])
            if ids.max() >= self.points[i]:
                raise ValueError(
                    f"layer {i}: {name} names point {ids.max()}, but its input has {self.points[i]} points"
                )
            counts = mask.sum(1)
            order = counts.argsort(kind="stable")  # output points sorted by their number of neighbours
            topology = {"ids": ids[order], "mask": mask[order].astype(np.float32), "order": order}
            for key, value in topology.items():  # not in the state dict: it follows from the hierarchy
                self.register_buffer(f"{key}{i}", torch.from_numpy(value), persistent=False)
            self._counts.append(counts[order].tolist())
            self._add_parameters(i, mask.shape[1], round(float(counts.mean())), init == "published")

    def _add_parameters(self, i: int, n_slots: int, mean_neighbours: int, published: bool) -> None:
        (in_points, out_points), (in_channels, out_channels) = self.points[i : i + 2], self.channels[i : i + 2]
        n_bases, rho = self.n_bases[i], self.residual_rates[i]

        def add(name: str, *shape: int, scale: float) -> None:
            self.register_parameter(f"{name}{i}", nn.Parameter(torch.randn(shape) * scale))

        if rho < 1:
            add("weights", n_bases, out_channels * in_channels, scale=1.0 if published else in_channels**-0.5)
            self.register_parameter(f"bias{i}", nn.Parameter(torch.zeros(out_channels)))
            # Neighbours are similar, so the gain of a sum over them is close to the sum of their coefficients.
            spread = mean_neighbours * n_bases
            add("w_weights", out_points, n_slots, n_bases, scale=1 / spread if published else spread**-0.5)
        if rho > 0 and in_points != out_points:
            add("p_neighbors", out_points, n_slots, scale=1 / mean_neighbours)
        if rho > 0 and in_channels != out_channels:
            add("weight_res", out_channels, in_channels, scale=1 / out_channels if published else in_channels**-0.5)

    def _of(self, i: int, name: str) -> Tensor:
        """A parameter or buffer of layer i."""
        return getattr(self, f"{name}{i}")

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(N, D): tokens per mesh and channels per latent."""
        return self.points[self.encoder_depth], self.channels[self.encoder_depth]

    def encode(self, x: Tensor) -> Tensor:
        """Vertices (B, V, 3) -> latents (B, N, D)."""
        return self._run(x, range(self.encoder_depth))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, N, D) -> vertices (B, V, 3)."""
        return self._run(z, range(self.encoder_depth, len(self.n_bases)))

    def _run(self, x: Tensor, layers: range) -> Tensor:
        # Always in float32: coordinates of more than a metre need tenths of a millimetre.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().transpose(0, 1).contiguous()  # (points, B, C)
            for i in layers:
                x = self._layer(i, x)
            return x.transpose(0, 1).contiguous()

    def _layer(self, i: int, x: Tensor) -> Tensor:
        """Features (I, B, C) -> (P, B, O) of layer i."""
        rho = self.residual_rates[i]
        ids, mask, order = (self._of(i, name) for name in ("ids", "mask", "order"))

        def convolve(x: Tensor, coefficients: Tensor, kernels: Tensor | None) -> Tensor:
            out = blend_and_mix(x, ids, coefficients, kernels, self._counts[i])
            return torch.empty_like(out).index_copy(0, order, out)

        if rho < 1:
            coefficients = self._of(i, "w_weights")[order] * mask[:, :, None]
            kernels = self._of(i, "weights").unflatten(1, (self.channels[i + 1], self.channels[i]))  # (W, O, C)
            out = convolve(x, coefficients, kernels) + self._of(i, "bias")
            out = out if i == len(self.n_bases) - 1 else F.elu(out)
            if rho == 0:
                return out
        residual = x if self.channels[i] == self.channels[i + 1] else x @ self._of(i, "weight_res").t()
        if self.points[i] != self.points[i + 1]:
            shares = self._of(i, "p_neighbors")[order].abs() * mask
            shares = shares / (shares.sum(1, keepdim=True) + 1e-8)
            residual = convolve(residual, shares[:, :, None], None)
        return residual if rho == 1 else math.sqrt(1 - rho) * out + math.sqrt(rho) * residual
