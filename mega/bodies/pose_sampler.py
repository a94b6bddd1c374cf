"""Natural poses without motion capture: everyday stances and gestures, blended, perturbed, kept within joint limits.

Use:
    sampler = PoseSampler(AnnyBody())
    pose = sampler.sample(64, torch.Generator().manual_seed(0))  # (64, J, 3)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import roma
import torch
from omegaconf import OmegaConf
from torch import Tensor

from mega.bodies.anny import AnnyBody
from mega.bodies.rig import ANGLES, ARM_ANGLES, SIDES, TRUNK, AnatomicalRig, SelfContact

CATALOGUE = Path(__file__).with_name("pose_catalogue.yaml")

_GESTURE_PROBABILITY = 0.65  # else the arms of the stance
_MIXED_ARMS_PROBABILITY = 0.3  # each arm then has a gesture of its own
_BLEND = 0.4  # up to this much of a second pose
_LYING_PROBABILITY = 0.04
_CONTACT_TOLERANCE = 0.025  # metres; flesh gives way, and hands do rest on thighs
_REDRAWS = 4


class PoseSampler:
    """Draws poses; left and right are equally likely in everything.

    Args:
        body: its bones take the angles.
    """

    def __init__(self, body: AnnyBody) -> None:
        self.rig = AnatomicalRig(body)
        self._contact = SelfContact(body)
        catalogue = OmegaConf.to_container(OmegaConf.load(CATALOGUE))
        self._stances = _Table.of(catalogue["stances"], catalogue["relaxed"])
        self._gestures = _Table.of(catalogue["gestures"], catalogue["relaxed"])
        self._low, self._high, self._noise = torch.tensor(list(ANGLES.values())).float().T  # (A,) each, degrees
        self._is_trunk = torch.tensor([name in TRUNK for name in ANGLES])
        self._is_arm = torch.tensor([name in ARM_ANGLES for name in ANGLES])
        self._is_right = torch.tensor([name.endswith(".R") for name in ANGLES])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n poses: (n, J, 3), axis-angle local to the parent.

        Poses in which the body penetrates itself are drawn again, a few times; the last draw is kept.
        """
        pose = self.rig.to_pose(self.sample_angles(n, generator))
        colliding = torch.arange(n)
        for _ in range(_REDRAWS):
            colliding = colliding[self._contact.depth(pose[colliding]) > _CONTACT_TOLERANCE]
            if not len(colliding):
                break
            pose[colliding] = self.rig.to_pose(self.sample_angles(len(colliding), generator))
        return pose

    def sample_angles(self, n: int, generator: torch.Generator) -> Tensor:
        """n poses as anatomical angles (n, A), degrees, in the order of `ANGLES`; self contact is ignored."""
        angles = self._draw(n, generator)
        other = self._draw(n, generator)
        share = _BLEND * torch.rand(n, 1, generator=generator).square()
        angles = torch.lerp(angles, other, share)
        liveliness = 0.4 + 1.2 * torch.rand(n, 1, generator=generator)
        angles = angles + liveliness * self._noise * torch.randn(n, len(ANGLES), generator=generator)
        return self._half_mirrored(angles.clamp(self._low, self._high), generator)

    def sample_root_orient(self, n: int, generator: torch.Generator) -> Tensor:
        """Orientations of the body in the camera: (n, 3) axis-angle.

        Upright and facing the camera is diag(1, -1, -1). Yaw is uniform over the circle; the camera looks down or up
        and tilts by a few degrees; a few bodies lie, on any side.
        """
        yaw = 2 * torch.pi * torch.rand(n, generator=generator) - torch.pi
        pitch, roll = torch.deg2rad(torch.tensor([[14.0], [7.0]])) * torch.randn(2, n, generator=generator)
        lying = torch.rand(n, generator=generator) < _LYING_PROBABILITY
        fall = torch.where(lying, torch.pi / 2, 0.0)
        spin = torch.where(lying, 2 * torch.pi * torch.rand(n, generator=generator), 0.0)
        body = _about("y", spin) @ _about("x", fall) @ _about("y", yaw)
        camera = _about("z", roll) @ _about("x", pitch)
        return roma.rotmat_to_rotvec(camera @ torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ body)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """A stance and, with some probability, a gesture: (n, A), without noise, not mirrored."""
        angles = self._stances.sample(n, generator)
        gesture = self._half_mirrored(self._gestures.sample(n, generator), generator)
        second = self._half_mirrored(self._gestures.sample(n, generator), generator)
        mixed = torch.rand(n, 1, generator=generator) < _MIXED_ARMS_PROBABILITY
        gesture = torch.where(mixed & self._is_right, second, gesture)
        gesturing = torch.rand(n, 1, generator=generator) < _GESTURE_PROBABILITY
        angles = torch.where(gesturing & self._is_arm, gesture, angles)
        # The trunk angles of a gesture are added to those of the stance.
        return torch.where(gesturing & self._is_trunk, angles + gesture, angles)

    def _half_mirrored(self, angles: Tensor, generator: torch.Generator) -> Tensor:
        mirrored = torch.rand(len(angles), 1, generator=generator) < 0.5
        return torch.where(mirrored, self.rig.mirror_angles(angles), angles)


class _Table(NamedTuple):
    """Catalogue entries as tensors: start and end (E, A), weight (E,)."""

    start: Tensor
    end: Tensor
    weight: Tensor

    @classmethod
    def of(cls, entries: Sequence[dict], relaxed: dict[str, float]) -> "_Table":
        start = [_key_pose(relaxed, entry["start"]) for entry in entries]
        end = [_key_pose(relaxed, entry["start"], entry["end"]) for entry in entries]
        return cls(torch.stack(start), torch.stack(end), torch.tensor([float(entry["weight"]) for entry in entries]))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n poses between the key poses of random entries: (n, A)."""
        entry = torch.multinomial(self.weight, n, replacement=True, generator=generator)
        return torch.lerp(self.start[entry], self.end[entry], torch.rand(n, 1, generator=generator))


def _key_pose(*layers: dict[str, float]) -> Tensor:
    """Angles by name, later ones over earlier ones -> (A,) degrees. Raises ValueError for an unknown angle."""
    order, angles = list(ANGLES), torch.zeros(len(ANGLES))
    for layer in layers:
        for name, value in layer.items():
            for full in [name] if name in ANGLES else [f"{name}.{side}" for side in SIDES]:
                angles[order.index(full)] = value
    return angles


def _about(axis: str, angle: Tensor) -> Tensor:
    """Rotations (n, 3, 3) by `angle` (n,) radians about a coordinate axis."""
    vector = torch.zeros(len(angle), 3)
    vector[:, "xyz".index(axis)] = angle
    return roma.rotvec_to_rotmat(vector)
