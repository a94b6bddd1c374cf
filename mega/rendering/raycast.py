"""Ray casting: rays through the pixels of a pinhole camera, and the surface that each hits first.

A ray caster (Embree, through `embreex`) draws a body of 13,000 vertices in about 20 ms on one core. It needs
only the pip package: no display, no EGL, no GPU. The same input gives the same image, bit for bit.

Picture coordinates are those of `mega.geometry`: pixel (0, 0) is the centre of the top left pixel, which reaches from
-0.5 to 0.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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


def embree_scene(vertices: np.ndarray, faces: np.ndarray):
    """A mesh (V, 3), (F, 3) for rays to be cast at."""
    # Imported here: only drawing needs the compiled library.
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
    x0, y0, x1, y1 = _touched_pixels(vertices, focal, principal_point, size)
    columns, rows = np.arange(x0, x1), np.arange(y0, y1)
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

    origins = np.broadcast_to(np.zeros(3, np.float32), directions.shape)  # all rays leave the camera: no need to copy
    found = embree_scene(vertices, faces).run(origins, directions, output=1)
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


def _touched_pixels(vertices, focal, principal_point, size) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the pixels that the mesh may cover, upper ends exclusive."""
    if not len(vertices):
        return 0, 0, 0, 0
    depth = vertices[:, 2:3]
    if depth.min() <= 1e-6:  # partly behind the camera: its box in the image is unbounded
        return 0, 0, *size
    points = vertices[:, :2] / depth * focal + np.asarray(principal_point)
    low = np.clip(np.floor(points.min(axis=0) + 0.5), 0, size).astype(int)
    high = np.clip(np.ceil(points.max(axis=0) + 0.5), 0, size).astype(int)
    return *low, *high
