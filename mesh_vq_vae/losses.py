"""What the tokenizer is trained and judged by."""

import torch
from torch import Tensor


def vertex_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean vertex distance of meshes (B, V, 3), each first centred on its vertex mean -> (B,), in their unit.

    The published training loss and its "v2v" (Fiche et al., ECCV 2024): a shift of a whole mesh costs nothing.
    """
    predicted = predicted - predicted.mean(1, keepdim=True)
    target = target - target.mean(1, keepdim=True)
    return (predicted - target).norm(dim=-1).mean(1)


def unique_edges(faces: Tensor) -> Tensor:
    """The edges (E, 2) of faces (F, 3), each once."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return edges.sort(1).values.unique(dim=0)


def edge_error(predicted: Tensor, target: Tensor, edges: Tensor) -> Tensor:
    """Mean difference of the edge vectors of meshes (B, V, 3), edges (E, 2) -> (B,): how crumpled the surface is."""
    difference = predicted - target
    return (difference[:, edges[:, 0]] - difference[:, edges[:, 1]]).norm(dim=-1).mean(1)
