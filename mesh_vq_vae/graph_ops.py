"""The one expensive operation of the tokenizer: free-weight sums over mesh neighbours, without their memory traffic.

A layer of the fully convolutional mesh autoencoder (Zhou et al., NeurIPS 2020) has a kernel of its own for every edge,
a blend of W basis kernels. Building those kernels (out × in numbers an edge) is what makes it slow. Here neighbours are
blended first, W blends an output point, and the W basis kernels act on the blends:

    out[p] = sum_w weights[w] @ ( sum_m coefficients[p, m, w] * x[ids[p, m]] )

The work is done for a few output points at a time, so that gathered neighbours never leave the cache, and the backward
pass gathers them again instead of keeping them. Where output points are sorted by their number of neighbours, padded
slots cost nothing either.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Floats gathered at a time: about 4 MB, the second-level cache of two cores. On a GPU larger pieces keep it busy.
CHUNK_FLOATS = {"cpu": 1 << 20, "cuda": 1 << 26}


def blend_and_mix(
    x: Tensor, ids: Tensor, coefficients: Tensor, weights: Tensor, counts: list[int] | None = None
) -> Tensor:
    """Graph convolution: blend neighbours W ways, then mix channels.

    Args:
        x: features (I, B, C), points first.
        ids: neighbours (P, M) int64 of every output point; padded slots hold any valid id.
        coefficients: (P, M, W), zero in padded slots.
        weights: basis kernels (W, O, C).
        counts: real neighbours of each output point, ascending: slots beyond are not looked at. None looks at all.

    Returns: (P, B, O).
    """
    n_bases, out_channels, in_channels = weights.shape
    if n_bases * out_channels < in_channels:
        # All W products together are smaller than the features: mix first, then blend, one slot a (m, w) pair.
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
    """(I, B*C), (p, M), (p, M, W) -> (p*B, W*C): the W blends of each point side by side."""
    n, n_slots = ids.shape
    gathered = source.index_select(0, ids.flatten()).view(n, n_slots, -1)
    blended = torch.bmm(coefficients.transpose(1, 2), gathered)  # (p, W, B*C)
    return blended.view(n, blended.shape[1], batch, -1).transpose(1, 2).reshape(n * batch, -1)


def _mixer(weights: Tensor) -> Tensor:
    """Basis kernels (W, O, C) as one matrix (W*C, O)."""
    return weights.transpose(1, 2).flatten(0, 1)


def _chunks(ids: Tensor, counts: list[int] | None, columns: int, device: str) -> Iterator[tuple[slice, int]]:
    """(output points, slots to look at) of each piece of the work."""
    if columns == 0:  # an empty batch
        return
    limit = CHUNK_FLOATS.get(device, CHUNK_FLOATS["cuda"]) // columns  # gathered neighbours at a time
    n_points, start = len(ids), 0
    while start < n_points:
        if counts is None:
            n_slots = ids.shape[1]
            stop = start + max(1, limit // n_slots)
        else:
            # Counts ascend: the last point of a piece is the widest, so widen as long as all fits.
            stop = start + 1
            while stop < n_points and (stop + 1 - start) * counts[stop] <= limit:
                stop += 1
            n_slots = counts[min(stop, n_points) - 1]
        stop = min(stop, n_points)
        yield slice(start, stop), n_slots
        start = stop
