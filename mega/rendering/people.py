"""People drawn over their image, and the same people seen from the side in front of a neutral backdrop.

Images are (h, w, 3) uint8 RGB. People are vertices (P, V, 3) in the camera frame (x right, y down, z forward, metres)
that share their faces (F, 3). Colours are sRGB in [0, 1], per person (P, 3) or per vertex (P, V, 3). `open_share`
(P, V) is `people_openness` of the same people: compute it once if you draw them several times.
"""

import cv2
import numpy as np

from mega.rendering.raycast import cast, merge_meshes
from mega.rendering.shading import openness, palette_colors, shade, vertex_normals

BACKDROP_TOP = np.array([0.955, 0.955, 0.96], np.float32)
BACKDROP_BOTTOM = np.array([0.86, 0.86, 0.875], np.float32)
_SHADOW_VERTICES = 13_000  # the shadow's strength was tuned on a body with this many vertices
_SIDE_PITCH = np.deg2rad(9)  # the side view looks down
_FAR = 5.0  # focal length in sides of the crop: perspective is close to the weak perspective of the predicted camera


def far_camera(cam: np.ndarray, size: int) -> tuple[np.ndarray, float, tuple[float, float]]:
    """A camera far from the people of crops of `size` px, for drawing a prediction on its crop.

    Args:
        cam: (P, 3), weak perspective (s, tx, ty) on the crops.

    Returns:
        Where the people stand (P, 3) m, the focal length in px, and the principal point in px.
    """
    scale, x, y = np.asarray(cam).T
    return np.stack([x, y, 2 * _FAR / scale], axis=1), _FAR * size, (size / 2, size / 2)


def people_openness(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(P, V): the share of light that reaches each vertex, including the shade of other people."""
    return openness(*merge_meshes(vertices, faces)).reshape(vertices.shape[:2])


def draw_people(
    image: np.ndarray,
    vertices: np.ndarray,
    faces: np.ndarray,
    focal: float,
    principal_point: np.ndarray,
    colors: np.ndarray | None = None,
    open_share: np.ndarray | None = None,
) -> np.ndarray:
    """The picture with the people drawn over it, with anti-aliased edges.

    Args:
        focal, principal_point (2,): px of this picture.
        colors: a palette if None.
        open_share: computed if None.
    """
    if open_share is None:
        open_share = people_openness(vertices, faces)
    colors = palette_colors(len(vertices)) if colors is None else np.asarray(colors, np.float32)
    if colors.ndim == 2:
        colors = colors[:, None]
    colors = np.broadcast_to(colors, vertices.shape).reshape(-1, 3)
    height, width = image.shape[:2]
    mesh, mesh_faces = merge_meshes(vertices, faces)
    lit = shade(mesh, vertex_normals(mesh, mesh_faces), colors, open_share.reshape(-1))
    hits = cast(mesh, mesh_faces, focal, principal_point, (width, height))
    drawn = hits.resolve(hits.interpolate(lit, mesh_faces)) * 255 + (1 - hits.coverage) * image
    return (drawn + 0.5).clip(0, 255).astype(np.uint8)


def draw_side_view(
    vertices: np.ndarray,
    faces: np.ndarray,
    height: int,
    colors: np.ndarray | None = None,
    open_share: np.ndarray | None = None,
) -> np.ndarray:
    """The people seen from the image's right-hand side and slightly from above, all of them, on a neutral backdrop.

    A person facing the image's camera looks to the left. The result is `height` px high; its width fits the people.
    """
    if not len(vertices):
        return _backdrop(height, int(height * 0.6)).astype(np.uint8)
    focal = 2.5 * height
    rotation, eye, width = _side_camera(vertices.reshape(-1, 3), focal, height)
    stage = _backdrop(height, width)
    # The rays through the pixels (h, w, 3), in the axes of the image's camera.
    x, y = np.meshgrid(np.arange(width) - width / 2, np.arange(height) - height / 2)
    rays = np.stack([x / focal, y / focal, np.ones_like(x)], axis=-1) @ rotation
    for person in vertices:
        stage *= 1 - _floor_shadow(person, eye, rays)[..., None]
    stage = (stage + 0.5).clip(0, 255).astype(np.uint8)
    seen = (vertices - eye) @ rotation.T
    return draw_people(stage, seen, faces, focal, (width / 2, height / 2), colors, open_share)


def draw_body(
    vertices: np.ndarray, faces: np.ndarray, height: int = 256, colors: np.ndarray | None = None, back: bool = False
) -> np.ndarray:
    """A canonical mesh (V, 3), Y up, seen from the front or the back: (height, W, 3) uint8 RGB."""
    x, y, z = np.asarray(vertices, np.float32).T
    sign = -1 if back else 1
    facing_right = np.stack([sign * z, -y, sign * x], 1)  # in the axes of a camera; the side view looks from the right
    return draw_side_view(facing_right[None], faces, height, colors)


def _side_camera(points: np.ndarray, focal: float, height: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Rotation (3, 3), position (3,) and image width px of a camera to the right that sees all points (n, 3)."""
    to_side = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # its right is away from the image's camera
    cosine, sine = np.cos(_SIDE_PITCH), np.sin(_SIDE_PITCH)
    rotation = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ to_side
    turned = points @ rotation.T
    low, high = turned.min(0), turned.max(0)
    centre, extent = (low + high) / 2, high - low
    width = round(height * float(np.clip(1.25 * extent[0] / max(extent[1], 1e-6), 0.6, 1.3)))
    # Each point must project within 0.43 of the side: |x| * focal <= 0.43 * width * (z + distance), and so for y.
    turned = turned - centre
    half = 0.43 * np.array([width, height])
    distance = (np.abs(turned[:, :2]) * focal / half - turned[:, 2:]).max()
    return rotation, rotation.T @ (centre - [0, 0, distance]), width


def _floor_shadow(person: np.ndarray, eye: np.ndarray, rays: np.ndarray, cell: float = 0.02) -> np.ndarray:
    """(h, w) in [0, 1): the soft shadow of a person (V, 3) on a floor under its lowest vertex, along rays (h, w, 3).

    Vertices near the floor count most. Each person has a separate floor, since sizes, and therefore depths and
    heights, are known only up to a factor: a common floor would leave people floating.
    """
    floor = person[:, 1].max()
    plan = person[:, [0, 2]]
    weight = np.exp(-(floor - person[:, 1]) / 0.25) * _SHADOW_VERTICES / len(person)
    low = plan.min(0) - 0.5
    shape = np.ceil((plan.max(0) + 0.5 - low) / cell).astype(int).clip(1, 1000)
    edges = [start + cell * np.arange(n + 1) for start, n in zip(low, shape, strict=True)]
    density = np.histogram2d(plan[:, 1], plan[:, 0], edges[::-1], weights=weight)[0].astype(np.float32)
    density = sum(cv2.GaussianBlur(density, (0, 0), sigma / cell) for sigma in (0.03, 0.10))
    # Where the ray of each pixel meets the floor.
    ground = eye[[0, 2]] + rays[..., [0, 2]] * ((floor - eye[1]) / np.maximum(rays[..., 1:2], 1e-6))
    place = ((ground - low) / cell - 0.5).astype(np.float32)
    found = cv2.remap(density, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return 0.5 * (1 - np.exp(-found / 9))


def _backdrop(height: int, width: int) -> np.ndarray:
    """(h, w, 3) float32 in 0…255: studio paper, a little darker below and in the corners."""
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    paper = BACKDROP_TOP * (1 - y**1.5) + BACKDROP_BOTTOM * y**1.5
    corner = (x**2 + (2 * y - 1) ** 2) / 2
    return 255 * paper * (1 - 0.06 * corner**2)
