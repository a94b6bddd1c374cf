"""Connection matrices: read, write, and build them from any connected triangle mesh.

A hierarchy is a pyramid of point sets over one mesh. Step i goes from one level to the next coarser one ("pool i") and
back ("unpool i"). Both are *connection matrices*, int32, with one row per output point:

    [n, id_0, d_0, id_1, d_1, …]      n neighbours: indices on the input level and hop distances

padded to the longest row with (number of input points, -1).

The construction follows Zhou et al., "Fully Convolutional Mesh Autoencoder using Efficient Spatially Varying Kernels"
(NeurIPS 2020), appendix A.2. With `SMPL_STEPS` and `SMPL_SEEDS` it reproduces the published `dfaust2` matrices of the
SMPL topology entry by entry, so they need not be downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mega_common.files import read_array

# (stride, pool radius, unpool radius) of each step, in hops.
Step = tuple[int, int, int]
SMPL_STEPS: tuple[Step, ...] = ((1, 1, 1), (2, 2, 2)) * 4
SMPL_SEEDS = (412, 2000, 3077, 3443, 5459, 6843)


class Hierarchy(dict[str, np.ndarray]):
    """Connection matrices of a mesh by name: "pool0", "unpool0", "pool1", …, each (P, 1 + 2M) int32."""

    @property
    def n_vertices(self) -> int:
        """Points of the finest level: each has a row in the first unpool matrix, whatever the stride is."""
        return len(self["unpool0"])

    @classmethod
    def from_matrices(cls, matrices: dict[str, np.ndarray]) -> Hierarchy:
        """A checked hierarchy.

        Raises ValueError when a step lacks its pool or unpool matrix, or when the matrices are of different meshes.
        """
        steps = range(sum(name.startswith("pool") for name in matrices))
        if not steps or matrices.keys() != {f"{kind}{i}" for i in steps for kind in ("pool", "unpool")}:
            raise ValueError(
                f"a hierarchy needs pool0, unpool0, pool1, unpool1, … without gaps, got: {', '.join(sorted(matrices))}"
            )
        hierarchy = cls(matrices)
        points = [hierarchy.n_vertices, *(len(matrices[f"pool{i}"]) for i in steps)]  # of each level
        for i in steps:
            for name, reads, gives in (
                (f"pool{i}", points[i], points[i + 1]),
                (f"unpool{i}", points[i + 1], points[i]),
            ):
                ids, mask = neighbours(matrices[name])
                least, most = ids.min(initial=0), ids.max(initial=0)
                if len(ids) != gives or least < 0 or most >= reads or not mask.any(axis=1).all():
                    raise ValueError(
                        f"the connection matrices are not of one mesh: {name} must make {gives} points of {reads}, "
                        f"but it makes {len(ids)} of points {least}..{most}"
                    )
        return hierarchy


def read_hierarchy(folder: str | Path) -> Hierarchy:
    """Read `_pool0.npy, _unpool0.npy, …` from a folder, the layout of the published connection matrices.

    Raises FileNotFoundError when the folder holds none; ValueError when a file is not a connection matrix, or when the
    matrices are of different meshes.
    """
    matrices = {}
    for path in sorted(Path(folder).glob("_*pool*.npy")):
        matrix = read_array(path)
        if matrix.ndim != 2 or matrix.shape[1] % 2 != 1 or not np.issubdtype(matrix.dtype, np.integer):
            raise ValueError(
                f"{path} is not a connection matrix: expected integers of shape (points, 1 + 2 * widest row), "
                f"got {matrix.dtype} {matrix.shape}"
            )
        matrices[path.stem[1:]] = matrix.astype(np.int32)
    if not matrices:
        raise FileNotFoundError(f"no connection matrices (_pool0.npy, _unpool0.npy, …) in {folder}")
    try:
        return Hierarchy.from_matrices(matrices)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def neighbours(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbour ids (P, M) int64, padded slots set to 0, and the mask (P, M) bool of the real ones."""
    n_slots = matrix.shape[1] // 2
    mask = np.arange(n_slots) < matrix[:, :1]
    return np.where(mask, matrix[:, 1::2], 0).astype(np.int64), mask


def build_hierarchy(
    faces: np.ndarray, n_vertices: int, steps: Sequence[Step] = SMPL_STEPS, seeds: Iterable[int] = ()
) -> Hierarchy:
    """Build the connection matrices of a connected triangle mesh.

    Args:
        faces: (F, 3) vertex indices. Their order determines the order of neighbours and centres.
        n_vertices: vertices of the mesh.
        steps: (stride, pool radius, unpool radius) of each step, in hops, from fine to coarse.
        seeds: vertices that are centres on every level; vertex 0 by default.

    Raises ValueError when the mesh is not connected (with its components) or an index is out of range.
    """
    faces = np.asarray(faces)
    if faces.size and (faces.min() < 0 or faces.max() >= n_vertices):
        raise ValueError(f"faces name vertices {faces.min()}..{faces.max()}, but the mesh has {n_vertices} vertices")
    seeds = list(seeds) or [0]
    if not all(0 <= s < n_vertices for s in seeds):
        raise ValueError(f"seeds {seeds} are not all vertices of a mesh of {n_vertices} vertices")
    graph = _edge_graph(faces, n_vertices)
    _check_connected(graph)
    hierarchy = Hierarchy()
    for i, (stride, pool_radius, unpool_radius) in enumerate(steps):
        centres = _centres(graph, seeds, stride)
        rank = {vertex: position for position, vertex in enumerate(centres)}
        hierarchy[f"pool{i}"] = _to_matrix([_ball(graph, centre, pool_radius) for centre in centres], len(graph))
        covering: list[dict[int, int]] = [{} for _ in graph]  # of each vertex, {rank of a centre: hops}
        for centre in centres:
            for vertex, hops in _ball(graph, centre, unpool_radius).items():
                covering[vertex][rank[centre]] = hops
        bare = [vertex for vertex, row in enumerate(covering) if not row]
        if bare:
            raise ValueError(
                f"unpool radius {unpool_radius} is too small for stride {stride}: {len(bare)} vertices are out of "
                f"reach of every centre (the first: {bare[:5]})"
            )
        hierarchy[f"unpool{i}"] = _to_matrix(covering, len(centres))
        graph = [[rank[v] for v in _ball(graph, centre, 2 * stride - 1) if v in rank] for centre in centres]
        seeds = [rank[seed] for seed in seeds]
    return hierarchy


def _edge_graph(faces: np.ndarray, n_vertices: int) -> list[list[int]]:
    """Neighbours of every vertex, in the order in which their edges first occur in the faces."""
    # Keys of a dict: in order of insertion, without repetition.
    graph: list[dict[int, None]] = [{} for _ in range(n_vertices)]
    for a, b, c in faces.tolist():
        for p, q in ((a, b), (b, c), (c, a)):
            graph[p][q] = None
            graph[q][p] = None
    return [list(row) for row in graph]


def _ball(graph: list[list[int]], start: int, radius: int) -> dict[int, int]:
    """{vertex: hops} of all vertices within `radius` hops, in breadth-first order, the start first."""
    hops, queue = {start: 0}, [start]
    for vertex in queue:  # grows while it is read: first in, first out
        if hops[vertex] == radius:
            break
        for other in graph[vertex]:
            if other not in hops:
                hops[other] = hops[vertex] + 1
                queue.append(other)
    return hops


def _centres(graph: list[list[int]], seeds: list[int], stride: int) -> list[int]:
    """Breadth-first choice of vertices that are at least `stride` hops apart (except seeds), sorted by index."""
    centres, reached, queue = set(seeds), set(seeds), list(seeds)
    covered = {vertex for seed in seeds for vertex in _ball(graph, seed, stride - 1)}
    for vertex in queue:  # grows while it is read
        for other in graph[vertex]:
            if other in reached:
                continue
            reached.add(other)
            queue.append(other)
            if other not in covered:
                centres.add(other)
                covered.update(_ball(graph, other, stride - 1))
    return sorted(centres)


def _check_connected(graph: list[list[int]]) -> None:
    ends = np.array([(vertex, other) for vertex, row in enumerate(graph) for other in row]).reshape(-1, 2)
    edges = coo_array((np.ones(len(ends)), ends.T), shape=(len(graph), len(graph)))
    n_components, component = connected_components(edges, directed=False)
    if n_components > 1:
        _, firsts, sizes = np.unique(component, return_index=True, return_counts=True)
        found = [f"{size} vertices around vertex {first}" for first, size in zip(firsts, sizes, strict=True)]
        more = f"; and {n_components - 8} more" if n_components > 8 else ""
        raise ValueError(
            f"the mesh is not connected, it has {n_components} components: {'; '.join(found[:8])}{more}. "
            "Remove the loose parts or connect them with edges"
        )


def _to_matrix(rows: list[dict[int, int]], in_points: int) -> np.ndarray:
    """Connection matrix (P, 1 + 2M) int32 of ragged {id: hops} rows."""
    widest = max(len(row) for row in rows)
    matrix = np.tile(np.array([0] + [in_points, -1] * widest, np.int32), (len(rows), 1))
    for i, row in enumerate(rows):
        matrix[i, : 1 + 2 * len(row)] = [len(row), *chain.from_iterable(row.items())]
    return matrix
