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
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesh_vq_vae.hierarchy import Hierarchy, neighbours

# Floats gathered at a time: about 4 MB, the L2 cache of two cores; more on a GPU, to keep it busy.
CHUNK_FLOATS = {"cpu": 1 << 20, "cuda": 1 << 26}


def blend_and_mix(
    x: Tensor, ids: Tensor, coefficients: Tensor, weights: Tensor, counts: list[int] | None = None
) -> Tensor:
    """Graph convolution: blend neighbours W times, then mix channels.

    Args:
        x: features (I, B, C), points first.
        ids: neighbours (P, M) int64 of every output point; any valid id where padded.
        coefficients: (P, M, W), zero where padded.
        weights: basis kernels (W, O, C).
        counts: number of neighbours of each output point, ascending, to skip padding; None for no padding.

    Returns: (P, B, O).
    """
    n_bases, out_channels, in_channels = weights.shape
    if n_bases * out_channels < in_channels:
        # All W products together are smaller than the features: mix first, then blend, one slot per (m, w) pair.
        mixed = x @ weights.flatten(0, 1).t()  # (I, B, W*O)
        mixed = mixed.unflatten(2, (n_bases, out_channels)).transpose(1, 2).flatten(0, 1)  # (I*W, B, O)
        slots = (ids[:, :, None] * n_bases + torch.arange(n_bases, device=ids.device)).flatten(1)  # (P, M*W)
        slot_counts = None if counts is None else [n * n_bases for n in counts]
        return blend(mixed, slots, coefficients.flatten(1), slot_counts)
    return _Blend.apply(x, ids, coefficients, weights, counts)


def blend(x: Tensor, ids: Tensor, coefficients: Tensor, counts: list[int] | None = None) -> Tensor:
    """Weighted sum of neighbours: x (I, B, C), ids (P, M), coefficients (P, M) -> (P, B, C). `counts` as above."""
    return _Blend.apply(x, ids, coefficients[:, :, None], None, counts)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, ids, coefficients, weights, counts):
        n_out, batch = ids.shape[0], x.shape[1]
        ctx.save_for_backward(x, ids, coefficients, weights)
        ctx.counts = counts
        mixer = None if weights is None else _mixer(weights)
        out = x.new_empty(n_out, batch, x.shape[2] if weights is None else weights.shape[1])
        source = x.flatten(1)  # (I, B*C)
        for part, n_slots in _chunks(ids, counts, source.shape[1], x.device.type):
            blended = _blended(source, ids[part, :n_slots], coefficients[part, :n_slots], batch)  # (p*B, W*C)
            if mixer is None:
                out[part] = blended.view(-1, batch, x.shape[2])
            else:
                torch.mm(blended, mixer, out=out[part].view(len(blended), -1))
        return out

    @staticmethod
    def backward(ctx, grad_out):
        x, ids, coefficients, weights = ctx.saved_tensors
        batch, channels = x.shape[1:]
        n_bases = coefficients.shape[2]
        need_x, _, need_coefficients, need_weights, _ = ctx.needs_input_grad
        grad_out = grad_out.contiguous()
        source = x.flatten(1)
        grad_source = torch.zeros_like(source) if need_x else None
        grad_coefficients = torch.zeros_like(coefficients) if need_coefficients else None
        mixer = None if weights is None else _mixer(weights)
        grad_mixer = None if weights is None else torch.zeros_like(mixer)
        for part, n_slots in _chunks(ids, ctx.counts, source.shape[1], x.device.type):
            part_ids, part_coefficients = ids[part, :n_slots], coefficients[part, :n_slots]
            n = len(part_ids)
            grad = grad_out[part].view(n * batch, -1)  # (p*B, O)
            if weights is not None:
                if need_weights:
                    grad_mixer.addmm_(_blended(source, part_ids, part_coefficients, batch).t(), grad)
                grad = grad @ mixer.t()  # (p*B, W*C)
                grad = grad.view(n, batch, n_bases, channels).transpose(1, 2)
            grad = grad.reshape(n, n_bases, batch * channels)
            if need_coefficients:
                gathered = source.index_select(0, part_ids.flatten()).view(n, -1, batch * channels)
                grad_coefficients[part, :n_slots] = torch.bmm(gathered, grad.transpose(1, 2))
            if need_x:
                grad_source.index_add_(0, part_ids.flatten(), torch.bmm(part_coefficients, grad).flatten(0, 1))
        grad_x = None if grad_source is None else grad_source.view_as(x)
        if need_weights and grad_mixer is not None:
            grad_weights = grad_mixer.view(n_bases, channels, -1).transpose(1, 2)
        else:
            grad_weights = None
        return grad_x, None, grad_coefficients, grad_weights, None


def _blended(source: Tensor, ids: Tensor, coefficients: Tensor, batch: int) -> Tensor:
    """(I, B*C), (p, M), (p, M, W) -> (p*B, W*C): the W blends of each point, concatenated."""
    n, n_slots = ids.shape
    gathered = source.index_select(0, ids.flatten()).view(n, n_slots, -1)
    blended = torch.bmm(coefficients.transpose(1, 2), gathered)  # (p, W, B*C)
    return blended.view(n, blended.shape[1], batch, -1).transpose(1, 2).reshape(n * batch, -1)


def _mixer(weights: Tensor) -> Tensor:
    """Basis kernels (W, O, C) as one matrix (W*C, O)."""
    return weights.transpose(1, 2).flatten(0, 1)


def _chunks(ids: Tensor, counts: list[int] | None, columns: int, device: str) -> Iterator[tuple[slice, int]]:
    """(output points, number of neighbour slots) of each piece of the work."""
    if columns == 0:  # an empty batch
        return
    limit = CHUNK_FLOATS.get(device, CHUNK_FLOATS["cuda"]) // columns  # gathered neighbours at a time
    n_points, start = len(ids), 0
    while start < n_points:
        if counts is None:
            n_slots = ids.shape[1]
            stop = start + max(1, limit // n_slots)
        else:
            # Counts ascend, so the last point of a piece has most neighbours: add points as long as all fit.
            stop = start + 1
            while stop < n_points and (stop + 1 - start) * counts[stop] <= limit:
                stop += 1
            n_slots = counts[min(stop, n_points) - 1]
        stop = min(stop, n_points)
        yield slice(start, stop), n_slots
        start = stop


@dataclass(frozen=True)
class LayerSpec:
    """One layer. `connections` is the name of a connection matrix, `n_bases` is W, `residual_rate` is rho."""

    connections: str
    in_points: int
    out_points: int
    in_channels: int
    out_channels: int
    n_bases: int
    residual_rate: float
    activation: bool


class FullyConvAE(nn.Module):
    """Encoder and decoder layers in one list; the layers along "pool" matrices are the encoder.

    Args:
        hierarchy: connection matrices of the mesh.
        connections: the matrix of each layer, e.g. ["pool0", "pool1", "unpool1", "unpool0"].
        channels: output channels of each layer.
        n_bases: basis kernels W of each layer (0 where rho is 1).
        residual_rates: rho of each layer.
        in_channels: channels of a vertex.
        init: "published" (scales of the released code) or "fan_in" (unit gain of every layer; trains much faster).
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        connections: Sequence[str],
        channels: Sequence[int],
        n_bases: Sequence[int],
        residual_rates: Sequence[float],
        in_channels: int = 3,
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
        self.layers: list[LayerSpec] = []
        self._counts: list[list[int]] = []  # neighbours of each layer's output points, ascending
        points, width = hierarchy.n_vertices, in_channels
        for i, name in enumerate(connections):
            ids, mask = neighbours(hierarchy[name])
            if ids.max() >= points:
                raise ValueError(f"layer {i}: {name} names point {ids.max()}, but its input has {points} points")
            spec = LayerSpec(
                name, points, len(ids), width, channels[i], n_bases[i], residual_rates[i], i < len(connections) - 1
            )
            # Not in the state dict: it follows from the hierarchy.
            self.register_buffer(f"ids{i}", torch.from_numpy(ids), persistent=False)
            self.register_buffer(f"mask{i}", torch.from_numpy(mask).float(), persistent=False)
            by_count = torch.from_numpy(mask.sum(1).argsort(kind="stable"))
            self.register_buffer(f"by_count{i}", by_count, persistent=False)
            self.register_buffer(f"rank{i}", by_count.argsort(), persistent=False)
            self._counts.append(sorted(mask.sum(1).tolist()))
            self._add_parameters(i, spec, mask.shape[1], mask.sum(1).mean(), init)
            self.layers.append(spec)
            points, width = len(ids), channels[i]

    def _add_parameters(self, i: int, spec: LayerSpec, n_slots: int, mean_neighbours: float, init: str) -> None:
        average = round(float(mean_neighbours))
        published = init == "published"

        def add(name: str, *shape: int, scale: float) -> None:
            self.register_parameter(f"{name}{i}", nn.Parameter(torch.randn(shape) * scale))

        if spec.residual_rate < 1:
            kernel = spec.out_channels * spec.in_channels
            add("weights", spec.n_bases, kernel, scale=1.0 if published else spec.in_channels**-0.5)
            self.register_parameter(f"bias{i}", nn.Parameter(torch.zeros(spec.out_channels)))
            # Neighbours are similar, so the gain of a sum over them is close to the sum of their coefficients.
            spread = 1 / (average * spec.n_bases) if published else (average * spec.n_bases) ** -0.5
            add("w_weights", spec.out_points, n_slots, spec.n_bases, scale=spread)
        if spec.residual_rate > 0:
            if spec.in_points != spec.out_points:
                add("p_neighbors", spec.out_points, n_slots, scale=1 / average)
            if spec.in_channels != spec.out_channels:
                scale = 1 / spec.out_channels if published else spec.in_channels**-0.5
                add("weight_res", spec.out_channels, spec.in_channels, scale=scale)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(N, D): tokens per mesh and channels per latent."""
        last = self.layers[self.encoder_depth - 1]
        return last.out_points, last.out_channels

    def encode(self, x: Tensor) -> Tensor:
        """Vertices (B, V, 3) -> latents (B, N, D)."""
        return self._run(x, range(self.encoder_depth))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, N, D) -> vertices (B, V, 3)."""
        return self._run(z, range(self.encoder_depth, len(self.layers)))

    def decode_subset(self, z: Tensor, points: Tensor, regressor: Tensor) -> tuple[Tensor, Tensor]:
        """Some vertices and some weighted sums of vertices, at much less than the cost of all vertices.

        Args:
            z: latents (B, N, D).
            points: (S,) vertices.
            regressor: (J, V).

        Returns: vertices `points` (B, S, 3), and regressor @ vertices (B, J, 3).
        """
        last = len(self.layers) - 1
        spec = self.layers[last]
        x = self._run(z, range(self.encoder_depth, last)).transpose(0, 1).contiguous()  # (I, B, C)
        with torch.autocast(z.device.type, enabled=False):
            some = self._layer(last, x, points)
            if spec.residual_rate > 0:
                sums = torch.einsum("jv,vbo->jbo", regressor, self._layer(last, x))
                return some.transpose(0, 1), sums.transpose(0, 1)
            # The last layer is linear: sum over its output points first, then over neighbours.
            ids, mask = getattr(self, f"ids{last}"), getattr(self, f"mask{last}")
            coefficients = getattr(self, f"w_weights{last}") * mask[:, :, None]  # (V, M, W)
            folded = coefficients.new_zeros(len(regressor), spec.in_points, spec.n_bases)
            for slot in range(ids.shape[1]):
                folded = folded.index_add(1, ids[:, slot], regressor[:, :, None] * coefficients[:, slot])
            kernels = getattr(self, f"weights{last}").unflatten(1, (spec.out_channels, spec.in_channels))
            sums = torch.einsum("bjwc,woc->bjo", torch.einsum("jiw,ibc->bjwc", folded, x), kernels)
            return some.transpose(0, 1), sums + regressor.sum(1)[:, None] * getattr(self, f"bias{last}")

    def _run(self, x: Tensor, layers: range) -> Tensor:
        # Always in float32: coordinates of more than a metre need tenths of a millimetre.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().transpose(0, 1).contiguous()  # (points, B, C)
            for i in layers:
                x = self._layer(i, x)
            return x.transpose(0, 1).contiguous()

    def _layer(self, i: int, x: Tensor, points: Tensor | None = None) -> Tensor:
        """Features (I, B, C) -> (P, B, O) of layer i, or of its output points `points` alone."""
        spec = self.layers[i]
        rho, conv, residual = spec.residual_rate, None, None
        # Output points sorted by their number of neighbours, to skip padding.
        order = getattr(self, f"by_count{i}") if points is None else points
        counts = self._counts[i] if points is None else None
        ids, mask = getattr(self, f"ids{i}")[order], getattr(self, f"mask{i}")[order]

        def in_place(out: Tensor) -> Tensor:
            return out[getattr(self, f"rank{i}")] if points is None else out

        if rho < 1:
            kernels = getattr(self, f"weights{i}").unflatten(1, (spec.out_channels, spec.in_channels))
            coefficients = getattr(self, f"w_weights{i}")[order] * mask[:, :, None]
            conv = in_place(blend_and_mix(x, ids, coefficients, kernels, counts)) + getattr(self, f"bias{i}")
            conv = F.elu(conv) if spec.activation else conv
        if rho > 0:
            residual = x
            if spec.in_channels != spec.out_channels:
                residual = residual @ getattr(self, f"weight_res{i}").t()
            if spec.in_points != spec.out_points:
                shares = getattr(self, f"p_neighbors{i}")[order].abs() * mask
                shares = shares / (shares.sum(1, keepdim=True) + 1e-8)
                residual = in_place(blend(residual, ids, shares, counts))
            elif points is not None:
                residual = residual[points]
        if conv is None:
            return residual
        if residual is None:
            return conv
        return math.sqrt(1 - rho) * conv + math.sqrt(rho) * residual
