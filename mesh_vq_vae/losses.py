"""Errors of reconstructed meshes: training losses and metrics."""

import torch
from torch import Tensor

from .procrustes import procrustes_align


def vertex_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean vertex distance of meshes (B, V, 3), each first centred on its vertex mean -> (B,), in their unit.

    The published training loss and its "v2v" (Fiche et al., ECCV 2024): a shift of a whole mesh costs nothing.
    """
    return vertex_distances(predicted, target).mean(1)


def vertex_distances(predicted: Tensor, target: Tensor) -> Tensor:
    """Distances (B, V) of corresponding vertices (B, V, 3), each mesh first centred on its vertex mean."""
    predicted = predicted - predicted.mean(1, keepdim=True)
    target = target - target.mean(1, keepdim=True)
    return (predicted - target).norm(dim=-1)


def aligned_vertex_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean vertex distance (B,) of meshes (B, V, 3) after the similarity that brings `predicted` closest to `target`.

    The published "PA-V2V". NaN for a mesh that is not finite, where the decomposition would raise an error.
    """
    finite = (predicted - target).isfinite().all(2).all(1)
    predicted = predicted.where(finite[:, None, None], target.nan_to_num())
    with torch.autocast(predicted.device.type, enabled=False):
        aligned = procrustes_align(predicted.float(), target.nan_to_num().float())
    return (aligned - target).norm(dim=-1).mean(1).where(finite, torch.nan)


def unique_edges(faces: Tensor) -> Tensor:
    """The edges (E, 2) of faces (F, 3), each once."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return edges.sort(1).values.unique(dim=0)


def edge_error(predicted: Tensor, target: Tensor, edges: Tensor) -> Tensor:
    """Mean difference of the edge vectors of meshes (B, V, 3), edges (E, 2) -> (B,): how crumpled the surface is."""
    difference = predicted - target
    return (difference[:, edges[:, 0]] - difference[:, edges[:, 1]]).norm(dim=-1).mean(1)
