"""Soft studio light on bodies.

Light is computed at the vertices and interpolated: with thousands of vertices per body it looks the same as light
computed at every pixel, and its cost does not grow with the size of the image.

World axes are the camera's: x right, y down, z forward; so the sky is at -y and the viewer looks along +z.
"""

from dataclasses import dataclass

import numpy as np

# Calm colours, easy to distinguish from each other and from most photographs; sRGB in [0, 1].
PALETTE = (
    np.array(
        [
            [142, 178, 214],  # sky
            [228, 170, 140],  # clay
            [156, 190, 140],  # sage
            [192, 158, 204],  # lilac
            [226, 196, 128],  # sand
            [120, 184, 182],  # teal
            [220, 146, 156],  # rose
            [168, 168, 174],  # slate
        ],
        np.float32,
    )
    / 255
)

# From sure (pale) to unsure (dark red); light enough at the lower end for the shading to show. sRGB in [0, 1].
HEAT = np.array([[214, 222, 230], [248, 218, 128], [240, 140, 72], [198, 46, 58], [104, 12, 66]], np.float32) / 255


@dataclass(frozen=True)
class Lights:
    """A light tent: directions point towards the light, colours are linear RGB."""

    sky: tuple[float, float, float] = (0.38, 0.42, 0.48)
    ground: tuple[float, float, float] = (0.15, 0.125, 0.11)
    key: tuple[float, float, float] = (1.12, 1.06, 0.98)
    key_direction: tuple[float, float, float] = (-0.70, -0.80, -0.55)
    fill: tuple[float, float, float] = (0.12, 0.15, 0.20)
    fill_direction: tuple[float, float, float] = (0.9, -0.1, -0.5)
    rim: tuple[float, float, float] = (0.34, 0.36, 0.40)
    gloss: float = 0.06


STUDIO = Lights()


def palette_colors(n: int) -> np.ndarray:
    """(n, 3) colours, one per person; they repeat after the end of the palette."""
    return PALETTE[np.arange(n) % len(PALETTE)]


def heat_colors(values: np.ndarray, limit: float) -> np.ndarray:
    """Values (…) from 0 to `limit` (and beyond, clipped) -> colours (…, 3) from pale to dark red."""
    place = np.clip(values / limit, 0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(place, stops, HEAT[:, c]) for c in range(3)], axis=-1).astype(np.float32)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Smooth unit normals (V, 3), triangles weighted by their area; zero for a vertex without a triangle."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    face_normals = np.cross(b - a, c - a)  # (F, 3), length twice the area
    normals = np.empty((len(vertices), 3), np.float32)
    corners = faces.T.reshape(-1)
    for axis in range(3):
        normals[:, axis] = np.bincount(corners, np.tile(face_normals[:, axis], 3), minlength=len(vertices))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def openness(vertices: np.ndarray, faces: np.ndarray, reach: float = 0.5, directions: int = 40) -> np.ndarray:
    """Ambient occlusion: the share of the light tent that each vertex sees, (V,) from 0 (hidden) to 1 (open).

    Args:
        vertices: (V, 3) m.
        faces: (F, 3), oriented outwards.
        reach: distance up to which surfaces cast shade, m.
        directions: rays per vertex; the half that would start below the surface is not cast.
    """
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    normals = vertex_normals(vertices, faces)
    # The same directions for every vertex, so that neighbours differ smoothly and no noise appears.
    towards = _sphere_directions(directions)
    cosine = normals @ towards.T  # (V, directions)
    vertex, direction = np.nonzero(cosine > 0.05)
    scene = EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))
    # Start slightly above the surface, so that no ray hits the triangle it starts from.
    origins = (vertices + 2e-3 * normals).astype(np.float32)
    limits = np.full(len(vertex), reach, np.float32)
    blocked = scene.run(origins[vertex], towards[direction], dists=limits, query="OCCLUDED") != -1
    weight = cosine[vertex, direction]
    total = np.bincount(vertex, weight, minlength=len(vertices))
    hidden = np.bincount(vertex, weight * blocked, minlength=len(vertices))
    return (1 - hidden / np.maximum(total, 1e-12)).astype(np.float32)


def shade(
    vertices: np.ndarray,
    normals: np.ndarray,
    colors: np.ndarray,
    open_share: np.ndarray | None = None,
    lights: Lights = STUDIO,
) -> np.ndarray:
    """Colours (V, 3), sRGB in [0, 1], of the vertices as a camera at the origin sees them.

    Args:
        vertices: (V, 3) camera frame.
        normals: (V, 3) unit, outwards.
        colors: (V, 3) or (3,) sRGB in [0, 1], the colour of the surface itself.
        open_share: (V,) from `openness`; all open if None.
    """
    view = -vertices / np.maximum(np.linalg.norm(vertices, axis=1, keepdims=True), 1e-12)
    key, fill = _unit(lights.key_direction), _unit(lights.fill_direction)
    share = np.ones(len(vertices), np.float32) if open_share is None else open_share

    upward = 0.5 - 0.5 * normals[:, 1:2]
    light = (np.outer(upward, lights.sky) + np.outer(1 - upward, lights.ground)) * share[:, None]
    # A key light larger than the body also lights some of the surface that faces away.
    wrapped = np.clip((normals @ key + 0.15) / 1.15, 0, None) ** 1.4
    light += np.outer(wrapped * (0.35 + 0.65 * share), lights.key)
    light += np.outer(np.clip(normals @ fill, 0, None) * share, lights.fill)

    facing = np.clip((normals * view).sum(1), 0, 1)
    rim = (1 - facing) ** 3 * np.clip(0.6 - 0.4 * normals[:, 1], 0, None) * share
    half = key + view
    half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-12)
    gloss = lights.gloss * np.clip((normals * half).sum(1), 0, None) ** 24 * share

    linear = np.asarray(colors, np.float32) ** 2.2 * light + np.outer(rim, lights.rim) * 0.5 + gloss[:, None]
    return np.clip(_soft_clip(linear), 0, 1).astype(np.float32) ** (1 / 2.2)


def _soft_clip(linear: np.ndarray) -> np.ndarray:
    """Identity up to 0.7, then a shoulder towards 1, so that bright skin keeps its shape."""
    above = np.clip(linear - 0.7, 0, None)
    return np.minimum(linear, 0.7) + 0.3 * (1 - np.exp(-above / 0.3))


def _unit(vector) -> np.ndarray:
    vector = np.asarray(vector, np.float32)
    return vector / np.linalg.norm(vector)


def _sphere_directions(n: int) -> np.ndarray:
    """(n, 3) unit vectors spread evenly over the sphere (a Fibonacci spiral)."""
    k = np.arange(n) + 0.5
    z = 1 - 2 * k / n
    angle = np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1).astype(np.float32)
