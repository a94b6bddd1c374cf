"""Left and right of a mesh: which vertex comes where another was when the body is seen in a mirror."""

from __future__ import annotations

from collections import deque

import numpy as np
from scipy.spatial import cKDTree

# Faces to begin at; on a symmetric template the first will do.
_TRIES = 200


def mirrored_vertices(template: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The vertex on the other side of the body, for each vertex; on the line between the sides, the vertex itself.

    Two vertices of the template that lie mirrored to one another in x begin, and the faces tell the rest: what lies to
    the left of an edge lies to the right of the mirrored edge. So the sides match exactly though the template does not,
    in its rest pose by a fraction of a millimetre, posed by centimetres.

    Args:
        template: (V, 3) m, x from side to side.
        faces: (F, 3) of a closed or open connected surface.

    Returns:
        (V,) int64, its own inverse.

    Raises:
        ValueError: if the faces are not the same on both sides, so that there is no such pairing.
    """
    centre = template[:, 0].mean()
    reflected = template * [-1, 1, 1] + [2 * centre, 0, 0]
    distance, nearest = cKDTree(template).query(reflected)
    third = _third_vertices(faces)
    for face in np.argsort(distance[faces].sum(axis=1), kind="stable")[:_TRIES]:
        a, b = (int(vertex) for vertex in faces[face, :2])
        pairs = _walk(third, (a, b), (int(nearest[a]), int(nearest[b])))
        if pairs is not None and len(pairs) == len(template):
            mirrored = np.array([pairs[vertex] for vertex in range(len(template))])
            if np.array_equal(mirrored[mirrored], np.arange(len(template))):
                return mirrored
    raise ValueError(
        f"The mesh of {len(template)} vertices has no left and right that match face by face, so predictions cannot be "
        "mirrored: give average=none or average=shift."
    )


def _third_vertices(faces: np.ndarray) -> dict[tuple[int, int], int]:
    """{directed edge: the third vertex of the face that it belongs to}."""
    third = {}
    for a, b, c in faces.tolist():
        third[a, b], third[b, c], third[c, a] = c, a, b
    return third


def _walk(third: dict[tuple[int, int], int], edge: tuple[int, int], image: tuple[int, int]) -> dict[int, int] | None:
    """{vertex: mirrored vertex} over the surface from an edge and its mirror image; None at the first contradiction."""
    pairs = dict(zip(edge, image, strict=True))
    todo, seen = deque([edge, edge[::-1]]), set()
    while todo:
        a, b = todo.popleft()
        if (a, b) in seen:
            continue
        seen.add((a, b))
        c, opposite = third.get((a, b)), third.get((pairs[b], pairs[a]))  # in a mirror, faces turn the other way round
        if c is None and opposite is None:  # the surface ends here
            continue
        if c is None or opposite is None or pairs.setdefault(c, opposite) != opposite:
            return None
        todo += [(c, b), (a, c)]  # into the two neighbours
    return pairs
