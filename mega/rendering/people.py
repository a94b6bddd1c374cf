"""People drawn over their image, and the same people seen from the side in front of a neutral backdrop.

Images are (h, w, 3) uint8 RGB. People are vertices (P, V, 3) in the camera frame (x right, y down, z forward, metres)
that share their faces (F, 3). Colours are sRGB in [0, 1], per person (P, 3) or per vertex (P, V, 3). `open_share`
(P, V) is `people_openness` of the same people: compute it once if you draw them several times.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from mega.rendering.raycast import cast, merge_meshes
from mega.rendering.shading import openness, palette_colors, shade, vertex_normals

BACKDROP_TOP = np.array([0.955, 0.955, 0.96], np.float32)
BACKDROP_BOTTOM = np.array([0.86, 0.86, 0.875], np.float32)
_SHADOW_VERTICES = 13_000  # the shadow's strength was tuned on a body with this many vertices
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
    if not len(vertices):
        return np.zeros(vertices.shape[:2], np.float32)
    return openness(*_one_mesh(vertices, faces)).reshape(vertices.shape[:2])


def draw_people(
    image: np.ndarray,
    vertices: np.ndarray,
    faces: np.ndarray,
    focal: float,
    principal_point: np.ndarray,
    colors: np.ndarray | None = None,
    open_share: np.ndarray | None = None,
    opacity: float = 1.0,
) -> np.ndarray:
    """The picture with the people drawn over it, with anti-aliased edges.

    Args:
        image: (h, w, 3) uint8.
        vertices: (P, V, 3), camera frame.
        faces: (F, 3).
        focal: px of this picture.
        principal_point: (2,) px of this picture.
        colors: (P, 3) or (P, V, 3); a palette if None.
        open_share: (P, V); computed if None.
        opacity: 1 hides what is behind the people, 0 hides the people.
    """
    if not len(vertices):
        return image.copy()
    if open_share is None:
        open_share = people_openness(vertices, faces)
    height, width = image.shape[:2]
    mesh, mesh_faces = _one_mesh(vertices, faces)
    lit = shade(mesh, vertex_normals(mesh, mesh_faces), _vertex_colors(colors, vertices.shape), open_share.reshape(-1))
    hits = cast(mesh, mesh_faces, focal, principal_point, (width, height))
    drawn = hits.resolve(hits.interpolate(lit, mesh_faces)) * (255 * opacity)
    drawn += (1 - opacity * hits.coverage) * image
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
        return _backdrop(height, int(height * 0.6))
    side = _side_camera(vertices.reshape(-1, 3), height)
    width = side.size[0]
    seen = side.to_camera(vertices)
    stage = _backdrop(height, width)
    for person in vertices:
        stage *= 1 - side.floor_shadow(person)[..., None]
    stage = (stage + 0.5).clip(0, 255).astype(np.uint8)
    return draw_people(stage, seen, faces, side.focal, (width / 2, height / 2), colors, open_share)


@dataclass(frozen=True)
class _SideCamera:
    """A camera to the side of the people: point -> rotation @ (point - centre) + (0, 0, distance)."""

    rotation: np.ndarray  # (3, 3)
    centre: np.ndarray  # (3,)
    distance: float
    focal: float
    size: tuple[int, int]

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        return (points - self.centre) @ self.rotation.T + [0, 0, self.distance]

    def floor_shadow(self, person: np.ndarray, cell: float = 0.02) -> np.ndarray:
        """(h, w) in [0, 1): the soft shadow of a person (V, 3) on a floor under its lowest vertex.

        Vertices near the floor count most. Each person has a separate floor, since sizes, and therefore depths and
        heights, are known only up to a factor: a common floor would leave people floating.
        """
        floor = person[:, 1].max()
        plan = person[:, [0, 2]]
        weight = np.exp(-(floor - person[:, 1]) / 0.25) * _SHADOW_VERTICES / len(person)
        low = plan.min(0) - 0.5
        shape = np.ceil((plan.max(0) + 0.5 - low) / cell).astype(int).clip(1, 1000)
        index = ((plan - low) / cell).astype(int).clip(0, shape - 1)
        density = np.bincount(index[:, 1] * shape[0] + index[:, 0], weight, minlength=shape[0] * shape[1])
        density = density.reshape(shape[1], shape[0]).astype(np.float32)
        density = sum(cv2.GaussianBlur(density, (0, 0), sigma / cell) for sigma in (0.03, 0.10))

        # Where the ray of each pixel meets the floor.
        width, height = self.size
        x, y = np.meshgrid(np.arange(width) - width / 2, np.arange(height) - height / 2)
        rays = np.stack([x / self.focal, y / self.focal, np.ones_like(x)], axis=-1) @ self.rotation  # world axes
        eye = self.centre - self.rotation.T @ [0, 0, self.distance]
        down = np.maximum(rays[..., 1], 1e-6)
        ground = eye[[0, 2]] + rays[..., [0, 2]] * ((floor - eye[1]) / down)[..., None]
        place = ((ground - low) / cell - 0.5).astype(np.float32)
        found = cv2.remap(density, place[..., 0], place[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return 0.5 * (1 - np.exp(-found / 9))


def _side_camera(points: np.ndarray, height: int, pitch: float = np.deg2rad(9)) -> _SideCamera:
    """Right = away from the picture's camera; then tilted down by `pitch` rad."""
    to_side = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    cosine, sine = np.cos(pitch), np.sin(pitch)
    tilt = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    rotation = tilt @ to_side
    turned = points @ rotation.T
    low, high = turned.min(0), turned.max(0)
    turned = turned - (low + high) / 2
    extent = high - low
    width = round(height * float(np.clip(1.25 * extent[0] / max(extent[1], 1e-6), 0.6, 1.3)))
    focal = 2.5 * height
    # Each point must project within 0.43 of the side: |x| * focal <= 0.43 * width * (z + distance), and so for y.
    half = 0.43 * np.array([width, height])
    distance = (np.abs(turned[:, :2]) * focal / half - turned[:, 2:]).max()
    return _SideCamera(rotation, rotation.T @ ((low + high) / 2), float(distance), focal, (width, height))


def _backdrop(height: int, width: int) -> np.ndarray:
    """(h, w, 3) float32 in 0…255: studio paper, a little darker below and in the corners."""
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    paper = BACKDROP_TOP * (1 - y**1.5) + BACKDROP_BOTTOM * y**1.5
    corner = (x**2 + (2 * y - 1) ** 2) / 2
    return 255 * paper * (1 - 0.06 * corner**2)


def _one_mesh(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return merge_meshes([(person, faces) for person in np.asarray(vertices, np.float32)])


def _vertex_colors(colors: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """(P * V, 3)."""
    people, count = shape[:2]
    colors = palette_colors(people) if colors is None else np.asarray(colors, np.float32)
    if colors.ndim == 2:
        colors = np.repeat(colors[:, None], count, axis=1)
    return colors.reshape(-1, 3)


def draw_body(
    vertices: np.ndarray, faces: np.ndarray, height: int = 256, colors: np.ndarray | None = None, back: bool = False
) -> np.ndarray:
    """A canonical mesh (V, 3), Y up, seen from the front or the back: (height, W, 3) uint8 RGB."""
    x, y, z = np.asarray(vertices, np.float32).T
    sign = -1 if back else 1
    facing_right = np.stack([sign * z, -y, sign * x], 1)  # in the axes of a camera; the side view looks from the right
    return draw_side_view(facing_right[None], faces, height, colors)
