"""Soft studio light on bodies.

Light is computed at the vertices and interpolated: with thousands of vertices per body it looks the same as light
computed at every pixel, and its cost does not grow with the size of the image.

World axes are the camera's: x right, y down, z forward; so the sky is at -y and the viewer looks along +z.
"""

import numpy as np

from mega.rendering.raycast import embree_scene, has_embree

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

# The light tent, linear RGB: sky and ground, a key and a fill light, a rim, and a little gloss.
_SKY, _GROUND = (0.38, 0.42, 0.48), (0.15, 0.125, 0.11)
_KEY, _KEY_DIRECTION = (1.12, 1.06, 0.98), np.array([-0.70, -0.80, -0.55], np.float32)  # towards the light
_FILL, _FILL_DIRECTION = (0.12, 0.15, 0.20), np.array([0.9, -0.1, -0.5], np.float32)
_RIM, _GLOSS = (0.34, 0.36, 0.40), 0.06

_SHADE_REACH = 0.5  # distance up to which surfaces cast shade, m
_SHADE_RAYS = 40  # per vertex; the half that would start below the surface is not cast


def palette_colors(n: int) -> np.ndarray:
    """(n, 3) colours, one per person; they repeat after the end of the palette."""
    return PALETTE[np.arange(n) % len(PALETTE)]


def heat_colors(values: np.ndarray, limit: float) -> np.ndarray:
    """Values (…) from 0 to `limit` (and beyond, clipped) -> colours (…, 3) from pale to dark red."""
    stops = np.linspace(0, limit, len(HEAT))
    return np.stack([np.interp(values, stops, channel) for channel in HEAT.T], axis=-1).astype(np.float32)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Smooth unit normals (V, 3), triangles weighted by their area; zero for a vertex without a triangle."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    face_normals = np.cross(b - a, c - a)  # (F, 3), length twice the area
    normals = np.empty((len(vertices), 3), np.float32)
    corners = faces.T.reshape(-1)
    for axis in range(3):
        normals[:, axis] = np.bincount(corners, np.tile(face_normals[:, axis], 3), minlength=len(vertices))
    return _unit(normals)


def openness(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Ambient occlusion: the share of the light tent that each vertex sees, (V,) from 0 (hidden) to 1 (open).

    Args:
        vertices: (V, 3) m.
        faces: (F, 3), oriented outwards.

    Without `embreex` everything is open.
    """
    if not has_embree():
        return np.ones(len(vertices), np.float32)
    normals = vertex_normals(vertices, faces)
    # The same directions for every vertex, so that neighbours differ smoothly and no noise appears: a Fibonacci spiral.
    k = np.arange(_SHADE_RAYS) + 0.5
    z = 1 - 2 * k / _SHADE_RAYS
    angle, radius = np.pi * (1 + 5**0.5) * k, np.sqrt(1 - z**2)
    towards = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1).astype(np.float32)
    cosine = normals @ towards.T  # (V, directions)
    vertex, direction = np.nonzero(cosine > 0.05)
    # Start slightly above the surface, so that no ray hits the triangle it starts from.
    origins = (vertices + 2e-3 * normals).astype(np.float32)
    limits = np.full(len(vertex), _SHADE_REACH, np.float32)
    scene = embree_scene(vertices, faces)
    blocked = scene.run(origins[vertex], towards[direction], dists=limits, query="OCCLUDED") != -1
    weight = cosine[vertex, direction]
    total = np.bincount(vertex, weight, minlength=len(vertices))
    hidden = np.bincount(vertex, weight * blocked, minlength=len(vertices))
    return (1 - hidden / np.maximum(total, 1e-12)).astype(np.float32)


def shade(vertices: np.ndarray, normals: np.ndarray, colors: np.ndarray, open_share: np.ndarray) -> np.ndarray:
    """Colours (V, 3), sRGB in [0, 1], of the vertices as a camera at the origin sees them.

    Args:
        vertices: (V, 3) camera frame.
        normals: (V, 3) unit, outwards.
        colors: (V, 3) or (3,) sRGB in [0, 1], the colour of the surface itself.
        open_share: (V,) from `openness`.
    """
    view, key, fill = _unit(-vertices), _unit(_KEY_DIRECTION), _unit(_FILL_DIRECTION)
    upward = 0.5 - 0.5 * normals[:, 1:2]
    light = (upward * _SKY + (1 - upward) * _GROUND) * open_share[:, None]
    # A key light larger than the body also lights some of the surface that faces away.
    wrapped = np.clip((normals @ key + 0.15) / 1.15, 0, None) ** 1.4
    light += np.outer(wrapped * (0.35 + 0.65 * open_share), _KEY)
    light += np.outer(np.clip(normals @ fill, 0, None) * open_share, _FILL)

    facing = np.clip((normals * view).sum(1), 0, 1)
    rim = (1 - facing) ** 3 * np.clip(0.6 - 0.4 * normals[:, 1], 0, None) * open_share
    gloss = _GLOSS * np.clip((normals * _unit(key + view)).sum(1), 0, None) ** 24 * open_share

    linear = np.asarray(colors, np.float32) ** 2.2 * light + np.outer(rim, _RIM) * 0.5 + gloss[:, None]
    # Identity up to 0.7, then a shoulder towards 1, so that bright skin keeps its shape.
    linear = np.minimum(linear, 0.7) + 0.3 * (1 - np.exp(-np.clip(linear - 0.7, 0, None) / 0.3))
    return np.clip(linear, 0, 1).astype(np.float32) ** (1 / 2.2)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) at length 1; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
