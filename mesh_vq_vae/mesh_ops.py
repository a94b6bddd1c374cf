"""Operations on meshes: best similarity between point sets, errors of reconstructed meshes, edges, and mirroring."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation."""

    scale: Tensor  # (...)
    rotation: Tensor  # (..., 3, 3)
    translation: Tensor  # (..., 3)

    def __call__(self, points: Tensor) -> Tensor:
        """Move points (..., N, 3)."""
        return self.scale[..., None, None] * points @ self.rotation.mT + self.translation[..., None, :]


def fit_similarity(source: Tensor, target: Tensor) -> Similarity:
    """Least-squares similarity from `source` to `target`; its rotation is never a reflection.

    Args:
        source, target: (..., N, 3). A source whose points all coincide is moved to the target's mean (scale 0).

    Source: Umeyama, Least-squares estimation of transformation parameters between two point patterns, TPAMI 1991.
    """
    source_mean, target_mean = source.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    x, y = source - source_mean, target - target_mean
    u, singular, vh = torch.linalg.svd(y.mT @ x)
    sign = torch.ones_like(singular)
    sign[..., -1] = torch.where(torch.det(u @ vh) < 0, -1.0, 1.0)
    rotation = (u * sign[..., None, :]) @ vh
    variance = x.square().sum((-2, -1))
    scale = (singular * sign).sum(-1) / variance.clamp_min(torch.finfo(variance.dtype).tiny)
    moved_mean = scale[..., None, None] * source_mean @ rotation.mT
    return Similarity(scale, rotation, (target_mean - moved_mean).squeeze(-2))


def procrustes_align(source: Tensor, target: Tensor) -> Tensor:
    """Points (..., N, 3) of `source` moved by the similarity that brings them closest to `target`."""
    return fit_similarity(source, target)(source)


def vertex_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean vertex distance of meshes (B, V, 3), each first centred on its vertex mean -> (B,), in their unit.

    The published training loss and its "v2v" (Fiche et al., ECCV 2024); it ignores a shift of the whole mesh.
    """
    return vertex_distances(predicted, target).mean(1)


def vertex_distances(predicted: Tensor, target: Tensor) -> Tensor:
    """Distances (B, V) of corresponding vertices (B, V, 3), each mesh first centred on its vertex mean."""
    predicted = predicted - predicted.mean(1, keepdim=True)
    target = target - target.mean(1, keepdim=True)
    return (predicted - target).norm(dim=-1)


def aligned_vertex_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean vertex distance (B,) of meshes (B, V, 3) after the similarity that brings `predicted` closest to `target`.

    The published "PA-V2V". NaN for a mesh that is not finite, for which the decomposition would raise an error.
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
    """Mean difference of the edge vectors of meshes (B, V, 3), edges (E, 2) -> (B,)."""
    difference = predicted - target
    return (difference[:, edges[:, 0]] - difference[:, edges[:, 1]]).norm(dim=-1).mean(1)


def mirrored_vertices(template: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The mirror-image vertex on the other side of the body for each vertex; itself for a vertex on the midline.

    The search starts from an edge and the edge nearest to its reflection in x, and follows the faces: what lies left of
    an edge lies right of the mirrored edge. So the result is exact although the template is not exactly symmetric (by
    a fraction of a millimetre in its rest pose, by centimetres when posed).

    Args:
        template: (V, 3) m, x from side to side.
        faces: (F, 3) of a closed or open connected surface.

    Returns:
        (V,) int64, its own inverse.

    Raises:
        ValueError: if the faces are not the same on both sides.
    """
    reflected = template * [-1, 1, 1] + [2 * template[:, 0].mean(), 0, 0]
    distance, nearest = cKDTree(template).query(reflected)
    third = {}  # {directed edge: the third vertex of the face that it belongs to}
    for a, b, c in faces.tolist():
        third[a, b], third[b, c], third[c, a] = c, a, b
    # Faces to start from, the most symmetric first: on a symmetric template the first one succeeds.
    for a, b, _ in faces[np.argsort(distance[faces].sum(axis=1), kind="stable")[:200]].tolist():
        pairs = _walk(third, (a, b), (int(nearest[a]), int(nearest[b])))
        if len(pairs) == len(template):
            mirrored = np.array([pairs[vertex] for vertex in range(len(template))])
            if np.array_equal(mirrored[mirrored], np.arange(len(template))):
                return mirrored
    raise ValueError(
        f"The mesh of {len(template)} vertices has no left and right sides that match face by face, so predictions "
        "cannot be mirrored: use tta=none or tta=shift."
    )


def _walk(third: dict[tuple[int, int], int], edge: tuple[int, int], image: tuple[int, int]) -> dict[int, int]:
    """{vertex: mirrored vertex} over the surface from an edge and its mirror image; empty on a contradiction."""
    pairs = dict(zip(edge, image, strict=True))
    todo, seen = [edge, edge[::-1]], set()
    for a, b in todo:  # grows while it is read
        if (a, b) in seen:
            continue
        seen.add((a, b))
        c, opposite = third.get((a, b)), third.get((pairs[b], pairs[a]))  # reflected faces are flipped
        if c is None and opposite is None:  # the surface ends here
            continue
        if c is None or opposite is None or pairs.setdefault(c, opposite) != opposite:
            return {}
        todo += [(c, b), (a, c)]  # the two neighbouring faces
    return pairs
