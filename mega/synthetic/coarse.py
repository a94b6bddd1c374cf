"""A coarser mesh for small pictures: what is smaller than a pixel need not be drawn."""

import numpy as np


def coarsen(rest: np.ndarray, faces: np.ndarray, part: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Keep one vertex of each cell of a grid, and the triangles that still have three corners.

    Args:
        rest: (V, 3) the mesh at rest, metres.
        faces: (F, 3).
        part: (V,) label; vertices of different parts (an arm, the trunk) are never joined.
        cell: side of the grid's cells, metres.

    Returns:
        The kept vertices (v,), indices into `rest`, and faces (f, 3), indices into the kept vertices.
    """
    keys = np.column_stack([np.floor(rest / cell).astype(np.int64), part])
    _, cluster, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    cluster = cluster.reshape(-1)
    means = np.stack([np.bincount(cluster, rest[:, k]) / counts for k in range(3)], axis=1)
    off_center = np.linalg.norm(rest - means[cluster], axis=1)
    order = np.lexsort((off_center, cluster))  # within each cluster, the most central vertex first
    kept = order[np.flatnonzero(np.diff(cluster[order], prepend=-1))]
    joined = cluster[faces]
    whole = (joined != np.roll(joined, 1, axis=1)).all(axis=1)
    return kept, joined[whole].astype(np.int32)
