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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# (stride, pool radius, unpool radius) of each step, in hops.
Step = tuple[int, int, int]
SMPL_STEPS: tuple[Step, ...] = ((1, 1, 1), (2, 2, 2)) * 4
SMPL_SEEDS = (412, 2000, 3077, 3443, 5459, 6843)


@dataclass(frozen=True)
class Hierarchy:
    """Connection matrices of a mesh; `hierarchy["pool0"]` is the first one."""

    pool: tuple[np.ndarray, ...]
    unpool: tuple[np.ndarray, ...]

    def __getitem__(self, name: str) -> np.ndarray:
        """Connection matrix (P, 1 + 2M) int32 by its name, "pool3" or "unpool0"."""
        return self.matrices()[name]

    @property
    def n_vertices(self) -> int:
        """Points of the finest level: each has a row in the first unpool matrix, whatever the stride is."""
        return len(self.unpool[0])

    def matrices(self) -> dict[str, np.ndarray]:
        """All matrices by name."""
        named = {f"pool{i}": m for i, m in enumerate(self.pool)}
        return named | {f"unpool{i}": m for i, m in enumerate(self.unpool)}

    @classmethod
    def from_matrices(cls, matrices: dict[str, np.ndarray]) -> Hierarchy:
        """The inverse of `matrices`.

        Raises ValueError when a step lacks its pool or unpool matrix, or when the matrices are of different meshes.
        """
        n_steps = sum(name.startswith("pool") for name in matrices)
        expected = {f"{kind}{i}" for i in range(n_steps) for kind in ("pool", "unpool")}
        if not n_steps or expected != set(matrices):
            raise ValueError(
                f"a hierarchy needs pool0, unpool0, pool1, unpool1, … without gaps, got: {', '.join(sorted(matrices))}"
            )
        hierarchy = cls(
            tuple(matrices[f"pool{i}"] for i in range(n_steps)), tuple(matrices[f"unpool{i}"] for i in range(n_steps))
        )
        hierarchy._check_levels()
        return hierarchy

    def _check_levels(self) -> None:
        """Every matrix goes from the points of one level to those of the next."""
        points = [self.n_vertices, *map(len, self.pool)]
        for i, (pool, unpool) in enumerate(zip(self.pool, self.unpool, strict=True)):
            for name, matrix, reads, gives in (
                (f"pool{i}", pool, points[i], points[i + 1]),
                (f"unpool{i}", unpool, points[i + 1], points[i]),
            ):
                ids, mask = neighbours(matrix)
                least, most = ids.min(initial=0), ids.max(initial=0)
                if len(matrix) != gives or least < 0 or most >= reads or not mask.any(axis=1).all():
                    raise ValueError(
                        f"the connection matrices are not of one mesh: {name} must make {gives} points of {reads}, "
                        f"but it makes {len(matrix)} of points {least}..{most}"
                    )


def read_hierarchy(folder: str | Path, n_vertices: int | None = None) -> Hierarchy:
    """Read `_pool0.npy, _unpool0.npy, …` from a folder, the layout of the published connection matrices.

    Args:
        n_vertices: of the expected mesh; None for any.

    Raises FileNotFoundError when the folder holds none; ValueError when a file is not a connection matrix, or when the
    matrices are of different meshes or of another one than expected.
    """
    folder = Path(folder)
    matrices = {}
    for path in sorted([*folder.glob("_pool*.npy"), *folder.glob("_unpool*.npy")]):
        try:
            matrix = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as a connection matrix: {error}") from error
        if matrix.ndim != 2 or matrix.shape[1] % 2 != 1 or not np.issubdtype(matrix.dtype, np.integer):
            raise ValueError(
                f"{path} is not a connection matrix: expected integers of shape (points, 1 + 2 * widest row), "
                f"got {matrix.dtype} {matrix.shape}"
            )
        matrices[path.stem[1:]] = matrix.astype(np.int32)
    if not matrices:
        raise FileNotFoundError(f"no connection matrices (_pool0.npy, _unpool0.npy, …) in {folder}")
    try:
        hierarchy = Hierarchy.from_matrices(matrices)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if n_vertices not in (None, hierarchy.n_vertices):
        raise ValueError(
            f"the connection matrices in {folder} are for meshes of {hierarchy.n_vertices} vertices, "
            f"but the mesh has {n_vertices}"
        )
    return hierarchy


def write_hierarchy(hierarchy: Hierarchy, folder: str | Path) -> None:
    """Write `_pool{i}.npy` and `_unpool{i}.npy`, int32, into a folder, which is created if missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, matrix in hierarchy.matrices().items():
        np.save(folder / f"_{name}.npy", matrix.astype(np.int32))


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
    pool, unpool = [], []
    for stride, pool_radius, unpool_radius in steps:
        centres = _centres(graph, seeds, stride)
        rank = {vertex: i for i, vertex in enumerate(centres)}
        pool.append(_to_matrix([_ball(graph, c, pool_radius) for c in centres], len(graph)))
        covering: list[list[tuple[int, int]]] = [[] for _ in graph]
        for i, c in enumerate(centres):
            for vertex, hops in _ball(graph, c, unpool_radius):
                covering[vertex].append((i, hops))
        bare = [v for v, row in enumerate(covering) if not row]
        if bare:
            raise ValueError(
                f"unpool radius {unpool_radius} is too small for stride {stride}: {len(bare)} vertices are out of "
                f"reach of every centre (the first: {bare[:5]})"
            )
        unpool.append(_to_matrix(covering, len(centres)))
        graph = [[rank[v] for v, _ in _ball(graph, c, 2 * stride - 1) if v in rank] for c in centres]
        seeds = [rank[s] for s in seeds]
    return Hierarchy(tuple(pool), tuple(unpool))


def _edge_graph(faces: np.ndarray, n_vertices: int) -> list[list[int]]:
    """Neighbours of every vertex, in the order in which their edges first occur in the faces."""
    # Keys of a dict: in order of insertion, without repetition.
    graph: list[dict[int, None]] = [{} for _ in range(n_vertices)]
    for a, b, c in faces.tolist():
        for p, q in ((a, b), (b, c), (c, a)):
            graph[p][q] = None
            graph[q][p] = None
    return [list(row) for row in graph]


def _ball(graph: list[list[int]], start: int, radius: int) -> list[tuple[int, int]]:
    """(vertex, hops) of all vertices within `radius` hops, ring by ring, the start first."""
    ball, seen, ring = [(start, 0)], {start}, [start]
    for hops in range(1, radius + 1):
        reached = []
        for vertex in ring:
            for other in graph[vertex]:
                if other not in seen:
                    seen.add(other)
                    reached.append(other)
        ball += [(vertex, hops) for vertex in reached]
        ring = reached
    return ball


def _centres(graph: list[list[int]], seeds: list[int], stride: int) -> list[int]:
    """Breadth-first choice of vertices that are at least `stride` hops apart (except seeds), sorted by index."""
    centres, covered = set(seeds), set()
    for seed in seeds:
        covered.update(v for v, _ in _ball(graph, seed, stride - 1))
    reached, queue = set(seeds), list(seeds)
    for vertex in queue:  # grows while it is read: first in, first out
        for other in graph[vertex]:
            if other in reached:
                continue
            reached.add(other)
            queue.append(other)
            if other not in covered:
                centres.add(other)
                covered.update(v for v, _ in _ball(graph, other, stride - 1))
    return sorted(centres)


def _check_connected(graph: list[list[int]]) -> None:
    unseen, components = set(range(len(graph))), []
    while unseen:
        first = min(unseen)
        stack, members = [first], {first}
        while stack:
            new = [v for v in graph[stack.pop()] if v not in members]
            members.update(new)
            stack += new
        unseen -= members
        components.append((first, len(members)))
    if len(components) > 1:
        shown = "; ".join(f"{size} vertices around vertex {first}" for first, size in components[:8])
        more = f"; and {len(components) - 8} more" if len(components) > 8 else ""
        raise ValueError(
            f"the mesh is not connected, it has {len(components)} components: {shown}{more}. "
            "Remove the loose parts or connect them with edges"
        )


def _to_matrix(rows: list[list[tuple[int, int]]], in_points: int) -> np.ndarray:
    """Connection matrix (P, 1 + 2M) int32 of ragged (id, hops) rows."""
    widest = max(len(row) for row in rows)
    matrix = np.empty((len(rows), 1 + 2 * widest), np.int32)
    matrix[:, 1::2], matrix[:, 2::2] = in_points, -1
    for i, row in enumerate(rows):
        matrix[i, 0] = len(row)
        matrix[i, 1 : 1 + 2 * len(row)] = np.asarray(row, np.int32).ravel()
    return matrix
