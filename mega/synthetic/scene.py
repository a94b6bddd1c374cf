"""One synthetic image: people placed in front of a camera, dressed, lit and drawn, and their annotations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import roma
import torch

from mega.bodies import AnnyBody, PoseSampler
from mega.rendering import cast, merge_meshes
from mega.rendering.shading import vertex_normals
from mega.synthetic.surroundings import photograph, random_background, random_lights, random_occluder
from mega.synthetic.wardrobe import BodyMap, Outfit

TRAINING_SIZES = ((224, 224), (168, 224), (192, 224), (224, 192))  # (w, h) px
_FIELD_OF_VIEW = (22.0, 70.0)  # degrees, along the longer side
_GRAIN = 0.012  # metres; in a picture of 224 px, nearer vertices are drawn as one
_NEAREST = 0.4  # metres between the camera and the nearest vertex, at least
_TRUNCATED_FILL = (1.05, 1.5)
# A keypoint lies inside the body; it is visible if the surface in front of it is closer to it than this, metres.
_FLESH = 0.14
_LEAST_SEEN = 5  # keypoints that must be visible of a person next to another one


@dataclass(frozen=True)
class SceneSettings:
    """How often things happen, as fractions of the images."""

    two_people: float = 0.12
    truncated: float = 0.15  # the person reaches beyond the image
    occluded: float = 0.3  # something is in front of the person
    fill: tuple[float, float] = (0.6, 0.95)  # range of the person's longer side, relative to the image's


class Person(NamedTuple):
    """A person to draw: the parameters of the body and its canonical mesh (V, 3)."""

    pose: np.ndarray
    shape: np.ndarray
    root_orient: np.ndarray
    vertices: np.ndarray


class _Camera(NamedTuple):
    """A pinhole camera at the origin that looks along z; its principal point is the middle of the image."""

    size: tuple[int, int]  # (width, height) px
    focal: float  # px

    @property
    def center(self) -> np.ndarray:
        return np.array(self.size) / 2

    def project(self, points: np.ndarray) -> np.ndarray:
        """Camera frame (n, 3) -> pixels (n, 2)."""
        return points[:, :2] / points[:, 2:] * self.focal + self.center

    def box(self, vertices: np.ndarray) -> np.ndarray:
        """(x0, y0, x1, y1) px around the projected vertices (V, 3); it may leave the image."""
        points = self.project(vertices)
        return np.concatenate([points.min(axis=0), points.max(axis=0)])


class SceneMaker:
    """Makes images of people; everything is drawn from random generators.

    Args:
        sizes: (width, height) px that an image may have.
    """

    def __init__(
        self, body: AnnyBody, settings: SceneSettings, sizes: Sequence[tuple[int, int]] = TRAINING_SIZES
    ) -> None:
        self.body, self.settings, self.sizes = body, settings, sizes
        self.sampler, self.body_map = PoseSampler(body), BodyMap(body)
        bone = body.skinning_weights.argmax(dim=1).numpy()
        grain = _GRAIN * 224 / np.max(sizes)
        self.drawn, self.faces = coarsen(body.template.numpy(), body.faces.numpy(), bone, grain)
        self.fields = self.body_map.fields[self.drawn]

    def sample_people(self, n: int, generator: torch.Generator) -> list[Person]:
        """n people of random pose, shape and orientation."""
        pose, shape = self.sampler.sample(n, generator), self.body.sample_shapes(n, generator)
        root_orient = self.sampler.sample_root_orient(n, generator)
        arrays = (array.numpy() for array in (pose, shape, root_orient, self.body(pose, shape)))
        return [Person(*values) for values in zip(*arrays, strict=True)]

    def make(self, people: list[Person], rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
        """A picture of one or two people.

        Returns:
            The image (h, w, 3) uint8 RGB, and one row of annotations for each visible person.
        """
        size = self.sizes[rng.integers(len(self.sizes))]
        camera = _Camera(size, max(size) / 2 / np.tan(np.radians(rng.uniform(*_FIELD_OF_VIEW)) / 2))
        rotations = [roma.rotvec_to_rotmat(torch.from_numpy(person.root_orient)).numpy() for person in people]
        turned = [person.vertices @ rotation.T for person, rotation in zip(people, rotations, strict=True)]
        offsets = _place(rng, turned, camera, self.settings)
        bodies = [(vertices + offset).astype(np.float32) for vertices, offset in zip(turned, offsets, strict=True)]
        boxes = [camera.box(vertices) for vertices in bodies]

        foreground, coverage, depth = self._draw(rng, bodies, camera)
        picture = foreground + (1 - coverage) * random_background(rng, size)
        hidden = np.zeros(size[::-1], bool)
        if rng.random() < self.settings.occluded:
            mask, colors = random_occluder(rng, size, boxes[0])
            picture += mask[..., None] * (colors - picture)
            hidden = mask > 0.5

        rows = []
        for person, vertices, offset, box in zip(people, bodies, offsets, boxes, strict=True):
            keypoints = self.body.keypoint_regressor.numpy() @ vertices
            points = camera.project(keypoints)
            seen = _seen(points, keypoints[:, 2], depth, hidden)
            if len(people) > 1 and seen.sum() < _LEAST_SEEN:
                continue  # behind the other one
            rows.append(
                {
                    "box": box,
                    "center": (box[:2] + box[2:]) / 2,
                    "scale": (box[2:] - box[:2]).max() / 200,
                    "pose": person.pose,
                    "root_orient": person.root_orient,
                    "shape": person.shape,
                    "trans": offset,
                    "focal": camera.focal,
                    "principal_point": camera.center,
                    "image_size": np.array(size),
                    "keypoints2d": np.column_stack([points, seen]),
                    "keypoints3d": keypoints,
                }
            )
        return photograph(rng, picture), rows

    def _draw(
        self, rng: np.random.Generator, bodies: list[np.ndarray], camera: _Camera
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Premultiplied colours (h, w, 3), coverage (h, w, 1) and depth (h, w), infinite outside the people."""
        light_of = random_lights(rng)
        outfits = [Outfit(rng, self.body_map) for _ in bodies]
        meshes, channels = [], []
        for body, outfit in zip(bodies, outfits, strict=True):
            vertices = body[self.drawn]
            normals = vertex_normals(vertices, self.faces)
            dressed = vertices + outfit.thickness(self.fields)[:, None] * normals
            meshes.append(dressed)
            channels.append(np.hstack([self.fields, light_of(dressed, normals)]))
        mesh, faces = merge_meshes(np.stack(meshes), self.faces)
        # Leave out what faces away from the camera: half the triangles halve the time to build the ray caster's tree.
        a, b, c = (mesh[faces[:, k]] for k in range(3))
        faces = faces[(np.cross(b - a, c - a) * a).sum(axis=1) < 0]
        hits = cast(mesh, faces, camera.focal, camera.center, camera.size)
        fields, light = np.split(hits.interpolate(np.concatenate(channels), faces), [self.fields.shape[1]], axis=1)
        owner = faces[hits.face_index, 0] // len(self.fields)
        colors = np.empty_like(light)
        for i, outfit in enumerate(outfits):
            colors[owner == i] = outfit.paint(fields[owner == i])
        # Light is linear, colours are not: gamma 2 is close enough to sRGB, and fast.
        shown = np.sqrt(np.minimum(colors**2 * light, 1))
        depth = np.full(camera.size[::-1], np.inf, np.float32)
        depth.flat[hits.pixel] = hits.depth
        return hits.resolve(shown), hits.coverage, depth


def coarsen(rest: np.ndarray, faces: np.ndarray, part: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """A coarser mesh for small images: one vertex per cell of a grid, and the triangles that still have three corners.

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


def _place(
    rng: np.random.Generator, turned: list[np.ndarray], camera: _Camera, settings: SceneSettings
) -> list[np.ndarray]:
    """Where each canonical centre stands in the camera (3,), so that the people fill the image as configured."""
    size, focal = np.array(camera.size), camera.focal
    around = [np.zeros(3)]
    if len(turned) > 1:
        side = rng.choice((-1, 1)) * rng.uniform(0.3, 0.9)
        around.append(np.array([side, 0.1 * rng.standard_normal(), rng.uniform(-0.6, 0.6)]))
    cloud = np.concatenate([vertices[::7] + offset for vertices, offset in zip(turned, around, strict=True)])
    middle = (cloud.min(axis=0) + cloud.max(axis=0)) / 2
    cloud = cloud - middle

    truncated = rng.random() < settings.truncated
    fill = rng.uniform(*(_TRUNCATED_FILL if truncated else settings.fill))
    # Whole people must fit in both directions; truncated ones may reach beyond the edges.
    wanted = fill * (size.max() if truncated else size)
    nearest = _NEAREST - cloud[:, 2].min()
    distance = max(focal * np.ptp(cloud[:, :2], axis=0).max() / np.max(wanted), nearest)
    for _ in range(3):  # perspective makes near parts larger: correct the distance until the box has its size
        extent = np.ptp(cloud[:, :2] / (cloud[:, 2:] + distance) * focal, axis=0)
        distance = max(distance * (extent / wanted).max(), nearest)
    box = camera.box(cloud + np.array([0, 0, distance]))

    room = size - (box[2:] - box[:2])  # negative where the box is larger
    corner = np.where(room > 0, rng.random(2), rng.uniform(0.15, 0.85, 2)) * room
    shift = (corner - box[:2]) / focal * distance
    anchor = np.array([*shift, distance]) - middle
    return [(anchor + offset).astype(np.float32) for offset in around]


def _seen(points: np.ndarray, depths: np.ndarray, surface: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Which keypoints (K,) are visible: inside the image and hidden by nothing but the body part they are in."""
    height, width = surface.shape
    column, row = np.floor(points).astype(int).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = column.clip(0, width - 1), row.clip(0, height - 1)
    return inside & ~hidden[row, column] & (depths - surface[row, column] < _FLESH)
