"""Ray casting: rays through the pixels of a pinhole camera, and the surface that each hits first.

A ray caster (Embree, through `embreex`) draws a body of 13,000 vertices in about 20 ms on one core. It needs
only the pip package: no display, no EGL, no GPU. The same input gives the same image, bit for bit.
Where there is no such package (Linux on ARM), triangles are rasterized by numpy, which takes about four times as long.

Picture coordinates are those of `mega.geometry`: pixel (0, 0) is the centre of the top left pixel, which reaches from
-0.5 to 0.5.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

log = logging.getLogger(__name__)
_PIXELS = 1 << 18  # pixels of triangles that are rasterized at once


@dataclass(frozen=True)
class Hits:
    """The samples of an image that hit the mesh; the others are left out.

    Attributes:
        pixel: (n,) int64, index y * width + x of the sample's pixel; each pixel occurs up to samples² times.
        face_index: (n,) int32, the triangle that was hit.
        barycentric: (n, 3) float32, weights of the triangle's three corners.
        depth: (n,) float32, distance along the camera's z axis, in the vertices' unit.
        size: (width, height) of the picture, px.
        samples: samples per pixel along one side.
    """

    pixel: np.ndarray
    face_index: np.ndarray
    barycentric: np.ndarray
    depth: np.ndarray
    size: tuple[int, int]
    samples: int

    def interpolate(self, vertex_values: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Values (V, C) at the vertices -> values (n, C) at the hits."""
        return np.einsum("nkc,nk->nc", vertex_values[faces[self.face_index]], self.barycentric)

    def resolve(self, values: np.ndarray) -> np.ndarray:
        """Mean over each pixel's samples, a miss counting as zero: (n, C) at the hits -> picture (h, w, C) float32.

        For colours this is the premultiplied foreground: `foreground + (1 - coverage) * background` draws it over a
        background.
        """
        width, height = self.size
        channels = [np.bincount(self.pixel, weights=c, minlength=height * width) for c in values.T]
        return np.stack(channels, axis=-1, dtype=np.float32).reshape(height, width, -1) / self.samples**2

    @property
    def coverage(self) -> np.ndarray:
        """(h, w, 1) float32: the share of each pixel's samples that hit the mesh."""
        return self.resolve(np.ones((len(self.pixel), 1)))


def merge_meshes(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """People (P, V, 3) with the same faces (F, 3) as one mesh, (P * V, 3) and (P * F, 3): they occlude each other."""
    people, count = vertices.shape[:2]
    offsets = count * np.arange(people)[:, None, None]
    return np.asarray(vertices, np.float32).reshape(-1, 3), (faces + offsets).reshape(-1, 3)


@cache
def has_embree() -> bool:
    """Whether `embreex` can be imported; if not, one line says what is different."""
    try:
        import embreex.rtcore_scene  # noqa: F401 (only drawing needs the compiled library)
    except (ImportError, OSError) as error:
        log.warning(
            "embreex cannot be imported (%s): bodies are drawn more slowly, and without the shade that they cast. "
            "Meshes and numbers are the same.",
            error,
        )
        return False
    return True


def embree_scene(vertices: np.ndarray, faces: np.ndarray):
    """A mesh (V, 3), (F, 3) for rays to be cast at."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))
    return scene


def cast(
    vertices: np.ndarray,
    faces: np.ndarray,
    focal: float,
    principal_point: Sequence[float],
    size: tuple[int, int],
    samples: int = 2,
) -> Hits:
    """Cast samples² rays through every pixel that the mesh may cover.

    Args:
        vertices: (V, 3), camera frame: x right, y down, z forward. Parts behind the camera are not seen.
        faces: (F, 3) vertex indices; both sides of a triangle are solid.
        focal: focal length, px.
        principal_point: (2,) px.
        size: (width, height) of the picture, px.
        samples: samples per pixel along one side; no two of a pixel share a row or a column, so nearly vertical or
            horizontal edges look as smooth as with samples² columns.
    """
    low, high = _touched_pixels(vertices, focal, principal_point, size) if len(vertices) else ((0, 0), (0, 0))
    columns, rows = (np.arange(*ends) for ends in zip(low, high, strict=True))
    i, j = (index.reshape(-1) for index in np.mgrid[:samples, :samples])
    dx = (i + (j + 0.5) / samples) / samples - 0.5  # (samples²,) in [-0.5, 0.5)
    dy = (j + (samples - i - 0.5) / samples) / samples - 0.5
    # (rows, columns, samples²): neighbouring rays lie side by side in memory, which the ray caster's cache likes.
    shape = (len(rows), len(columns), samples**2)
    directions = np.ones((*shape, 3), np.float32)
    directions[..., 0] = (columns[None, :, None] + dx - principal_point[0]) / focal
    directions[..., 1] = (rows[:, None, None] + dy - principal_point[1]) / focal
    directions = directions.reshape(-1, 3)
    pixel = np.broadcast_to((rows[:, None] * size[0] + columns)[..., None], shape).reshape(-1)

    if has_embree():
        origins = np.broadcast_to(np.zeros(3, np.float32), directions.shape)  # all rays leave the camera: not copied
        found = embree_scene(vertices, faces).run(origins, directions, output=1)
    else:
        grid = (len(columns), len(rows))
        directions = directions.reshape(-1, samples**2, 3)
        found = _rasterize(vertices, faces, focal, np.subtract(principal_point, low), grid, directions)
    hit = np.flatnonzero(found["primID"] >= 0)
    u, v = found["u"][hit], found["v"][hit]
    return Hits(
        pixel=pixel[hit],
        face_index=found["primID"][hit],
        barycentric=np.stack([1 - u - v, u, v], axis=1),
        depth=found["tfar"][hit],  # the directions have z = 1, so the ray's parameter is the depth
        size=size,
        samples=samples,
    )


def _rasterize(
    vertices: np.ndarray,
    faces: np.ndarray,
    focal: float,
    principal_point: np.ndarray,
    size: tuple[int, int],
    directions: np.ndarray,
) -> dict[str, np.ndarray]:
    """What Embree finds along the rays (pixels, S, 3) of a picture of this size, by a depth buffer.

    A ray d meets the plane of the corners A, B, C where d is proportional to a A + b B + c C. Each weight is a product
    of d with the normal of the plane through the camera and an edge, so triangles that are partly behind the camera
    need no clipping, and neighbouring triangles leave no gap.
    Source: Olano & Greer, Triangle Scan Conversion using 2D Homogeneous Coordinates, Graphics Hardware 1997.
    """
    corners = np.asarray(vertices, np.float64)[faces]  # (F, 3, 3)
    normals = np.cross(np.roll(corners, -1, axis=1), np.roll(corners, -2, axis=1))
    volume = (normals[:, 0] * corners[:, 0]).sum(axis=1)  # six times that of the tetrahedron with the camera
    normals *= np.sign(volume)[:, None, None]
    low, high = _touched_pixels(corners, focal, principal_point, size)
    width, count = (high - low)[:, 0], (high - low).prod(axis=1)
    seen = np.flatnonzero((count > 0) & (volume != 0) & (corners[..., 2] > 0).any(axis=1))

    pixels, samples = directions.shape[:2]
    found = {"tfar": np.full(pixels * samples, np.inf), "primID": np.full(pixels * samples, -1)}
    found |= {name: np.zeros(pixels * samples) for name in "uv"}
    for part in np.split(seen, np.flatnonzero(np.diff(count[seen].cumsum() // _PIXELS)) + 1):
        face = np.repeat(part, count[part])  # one row per pixel that a triangle may cover
        place = np.arange(len(face)) - np.repeat(count[part].cumsum() - count[part], count[part])
        pixel = (low[face, 1] + place // width[face]) * size[0] + low[face, 0] + place % width[face]
        weights = np.einsum("nij,nsj->nsi", normals[face], directions[pixel])
        row, sample = np.nonzero((weights >= 0).all(axis=2) & (weights.sum(axis=2) > 0))
        weights, face, ray = weights[row, sample], face[row], pixel[row] * samples + sample
        total = weights.sum(axis=1)
        depth = np.abs(volume[face]) / total
        np.minimum.at(found["tfar"], ray, depth)
        first = np.flatnonzero(depth == found["tfar"][ray])
        for name, values in (("primID", face), ("u", weights[:, 1] / total), ("v", weights[:, 2] / total)):
            found[name][ray[first]] = values[first]
    return {name: values.astype(np.int32 if name == "primID" else np.float32) for name, values in found.items()}


def _touched_pixels(
    points: np.ndarray, focal: float, principal_point: Sequence[float], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """First pixel (…, 2) int and the one behind the last of what points (…, n, 3) span, x before y."""
    depth = points[..., 2:]
    in_front = (depth > 1e-6).all(axis=-2)  # else partly behind the camera: its box in the image is unbounded
    points = points[..., :2] / np.where(in_front[..., None, :], depth, 1) * focal + np.asarray(principal_point)
    low = np.clip(np.floor(points.min(axis=-2) + 0.5), 0, size)
    high = np.clip(np.ceil(points.max(axis=-2) + 0.5), 0, size)
    return np.where(in_front, low, 0).astype(int), np.where(in_front, high, size).astype(int)
