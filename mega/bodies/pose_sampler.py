"""Natural poses without motion capture: everyday stances and gestures, blended, perturbed, kept within joint limits.

Use:
    sampler = PoseSampler(AnnyBody())
    pose = sampler.sample(64, torch.Generator().manual_seed(0))  # (64, J, 3)

Poses are written and drawn in anatomical angles ("elbow bent by 90°"), which `AnatomicalRig` turns into joint rotations
and `SelfContact` tests for parts of the body that penetrate each other.

Angles are measured from the *neutral stance*: upright, legs together and straight, arms hanging, palms towards the
thighs. There, every hinge of a limb lies on the body's left-right axis, so each angle is a rotation about an axis of
the world. Anny rests in an A-pose with bent elbows instead; `AnatomicalRig` measures the rotation `A_j` from that rest
to the neutral stance for each bone j. With `E_j` the anatomical rotation of bone j, Anny's rotation, local to the
parent and in the axes of its rest, is `D_j = A_parent^T E_j A_j`.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import roma
import torch
from omegaconf import OmegaConf
from torch import Tensor

from mega.bodies.anny import AnnyBody

CATALOGUE = Path(__file__).with_name("pose_catalogue.yaml")


class Angle(NamedTuple):
    """Range of an angle, and standard deviation of the noise that the pose sampler adds; degrees."""

    low: float
    high: float
    noise: float


#: Angles of trunk and neck. Bend is forward, side and twist are to the body's left.
TRUNK = {
    "spine_bend": Angle(-25, 75, 5),
    "spine_side": Angle(-30, 30, 4),
    "spine_twist": Angle(-40, 40, 6),
    "neck_bend": Angle(-35, 40, 9),
    "neck_side": Angle(-25, 25, 6),
    "neck_twist": Angle(-60, 60, 18),
}

_ARM = {
    "shrug": Angle(-5, 20, 3),
    "shoulder_flex": Angle(-50, 175, 9),
    "shoulder_abduct": Angle(-45, 170, 7),
    "shoulder_twist": Angle(-80, 80, 12),
    "elbow": Angle(2, 148, 11),
    "forearm_twist": Angle(-80, 85, 25),  # positive: palm turns forward
    "wrist_bend": Angle(-60, 60, 12),  # positive: towards the palm
    "curl": Angle(-5, 75, 12),  # each finger joint
}
_LEG = {
    "hip_flex": Angle(-25, 125, 7),
    "hip_abduct": Angle(-20, 60, 5),
    "hip_twist": Angle(-35, 60, 7),
    "knee": Angle(0, 150, 8),
    "ankle": Angle(-45, 25, 6),  # positive: toes up
    "foot_roll": Angle(-15, 15, 3),  # positive: sole outward
}

SIDES = ("L", "R")
#: All angles: trunk, left limbs, right limbs. Flexion is forward (the knee's: backward), abduction away from the body,
#: twist outward.
ANGLES = TRUNK | {f"{name}.{side}": angle for side in SIDES for name, angle in (_ARM | _LEG).items()}
ARM_ANGLES = tuple(f"{name}.{side}" for side in SIDES for name in _ARM)

# How a bend of the spine and of the neck is distributed over their bones, from below.
_SPINE = {"spine05": 0.15, "spine04": 0.2, "spine03": 0.25, "spine02": 0.2, "spine01": 0.2}
_NECK = {"neck01": 0.25, "neck02": 0.25, "neck03": 0.2, "head": 0.3}
# Collar bone and shoulder blade take a third of the arm's elevation beyond 30°.
_GIRDLE = {"clavicle": 0.4, "shoulder01": 0.6}
_GIRDLE_SHARE, _GIRDLE_START = 1 / 3, 30.0
_FINGERS = tuple(f"finger{f}-{j}" for f in (2, 3, 4, 5) for j in (1, 2, 3))
_THUMB = ("finger1-2", "finger1-3")

_GESTURE_PROBABILITY = 0.65  # else the arms of the stance
_MIXED_ARMS_PROBABILITY = 0.3  # each arm then has a gesture of its own
_BLEND = 0.4  # up to this much of a second pose
_LYING_PROBABILITY = 0.04
_CONTACT_TOLERANCE = 0.025  # metres; flesh gives way, and hands do rest on thighs
_REDRAWS = 4


class AnatomicalRig:
    """Anatomical angles -> axis-angle joint rotations of a body with Anny's bones."""

    def __init__(self, body: AnnyBody) -> None:
        self._index = {name: i for i, name in enumerate(body.joint_names)}
        self._alignment = self._measure_alignment(body.rest_joints.cpu())  # A_j, (J, 3, 3)
        with_root = torch.cat([self._alignment, torch.eye(3)[None]])  # the root is parent -1
        self._parent_alignment = with_root[list(body.joint_parents)]
        # The neutral stance (J, 3), for bones without an angle.
        self._neutral_pose = roma.rotmat_to_rotvec(self._parent_alignment.mT @ self._alignment)

    def to_pose(self, angles: Tensor) -> Tensor:
        """Angles (n, A) in degrees, columns as in `ANGLES` -> pose (n, J, 3), axis-angle. Ranges are not enforced."""
        value = dict(zip(ANGLES, torch.deg2rad(angles).unbind(1), strict=True))
        rotations = {}  # E_j by bone, (n, 3, 3)
        for bones, part in ((_SPINE, "spine"), (_NECK, "neck")):
            bend, side, twist = (value[f"{part}_{kind}"] for kind in ("bend", "side", "twist"))
            for bone, share in bones.items():
                rotations[bone] = _rotation(x=bend * share, y=twist * share, z=-side * share)
        for side in SIDES:
            limb = {name: value[f"{name}.{side}"] for name in _ARM | _LEG}
            for bone, matrix in (_arm_rotations(limb) | _leg_rotations(limb)).items():
                rotations[f"{bone}.{side}"] = matrix if side == "L" else _mirror(matrix)

        joints = torch.tensor([self._index[bone] for bone in rotations])
        anatomical = torch.stack(list(rotations.values()), dim=1)
        local = self._parent_alignment[joints].mT @ anatomical @ self._alignment[joints]
        pose = self._neutral_pose.repeat(len(angles), 1, 1)  # (n, J, 3)
        pose[:, joints] = roma.rotmat_to_rotvec(local)
        return pose

    @staticmethod
    def mirror_angles(angles: Tensor) -> Tensor:
        """Angles (..., A) mirrored: left and right change places."""
        trunk, sides = angles[..., : len(TRUNK)], angles[..., len(TRUNK) :]
        left, right = sides.chunk(2, dim=-1)
        return torch.cat((trunk * trunk.new_tensor([1, -1, -1, 1, -1, -1]), right, left), dim=-1)

    def _measure_alignment(self, rest: Tensor) -> Tensor:
        """A_j of every bone (J, 3, 3), measured on the left and mirrored."""
        at = {name: rest[i] for name, i in self._index.items()}
        down, left, front = -torch.eye(3)[1], torch.eye(3)[0], torch.eye(3)[2]
        upper = at["lowerarm01.L"] - at["upperarm01.L"]
        fore = at["wrist.L"] - at["lowerarm01.L"]
        hinge = torch.linalg.cross(fore, upper)  # the elbow's axis, towards the left in the neutral stance
        palm = at["finger3-1.L"] - at["wrist.L"]
        thumb_side = at["finger2-1.L"] - at["finger5-1.L"]  # forward in the neutral stance
        thigh = at["lowerleg01.L"] - at["upperleg01.L"]
        shin = at["foot.L"] - at["lowerleg01.L"]

        forearm = _align((fore, down), (hinge, left))
        forearm_at_wrist = _align((fore, down), (thumb_side, front))
        halfway = forearm @ roma.rotvec_to_rotmat(roma.rotmat_to_rotvec(forearm.T @ forearm_at_wrist) / 2)
        hand = _align((palm, down), (thumb_side, front))
        by_bone = {
            **dict.fromkeys(("upperarm01", "upperarm02"), _align((upper, down), (hinge, left))),
            "lowerarm01": forearm,
            "lowerarm02": halfway,
            "wrist": hand,
            **dict.fromkeys(("upperleg01", "upperleg02"), _align((thigh, down), (left, left))),
            **dict.fromkeys(("lowerleg01", "lowerleg02"), _align((shin, down), (left, left))),
        }
        alignment = torch.eye(3).repeat(len(rest), 1, 1)
        for name, i in self._index.items():
            bone, _, side = name.partition(".")
            bone = "wrist" if bone.startswith(("finger", "metacarpal")) else bone
            if side and bone in by_bone:
                alignment[i] = by_bone[bone] if side == "L" else _mirror(by_bone[bone])
        return alignment


def _arm_rotations(limb: dict[str, Tensor]) -> dict[str, Tensor]:
    """E_j of a left arm."""
    flex, abduct = limb["shoulder_flex"], limb["shoulder_abduct"]
    raised = torch.linalg.vector_norm(torch.stack((flex, abduct)), dim=0)
    lift = limb["shrug"] + _GIRDLE_SHARE * (raised - torch.deg2rad(torch.tensor(_GIRDLE_START))).clamp_min(0.0)
    half_twist = _rotation(y=limb["shoulder_twist"] / 2)
    half_pronation = _rotation(y=limb["forearm_twist"] / 2)
    return {
        **{bone: _rotation(z=lift * share) for bone, share in _GIRDLE.items()},
        "upperarm01": _rotation(z=lift).mT @ _rotation(x=-flex, z=abduct) @ half_twist,
        "upperarm02": half_twist,
        "lowerarm01": _rotation(x=-limb["elbow"]),
        "lowerarm02": half_pronation,
        "wrist": half_pronation @ _rotation(z=-limb["wrist_bend"]),
        **dict.fromkeys(_FINGERS, _rotation(z=-limb["curl"])),
        **dict.fromkeys(_THUMB, _rotation(x=-limb["curl"] / 3)),
    }


def _leg_rotations(limb: dict[str, Tensor]) -> dict[str, Tensor]:
    """E_j of a left leg."""
    half_twist = _rotation(y=limb["hip_twist"] / 2)
    return {
        "upperleg01": _rotation(x=-limb["hip_flex"], z=limb["hip_abduct"]) @ half_twist,
        "upperleg02": half_twist,
        "lowerleg01": _rotation(x=limb["knee"]),
        "foot": _rotation(x=-limb["ankle"], z=limb["foot_roll"]),
    }


def _rotation(x: Tensor | float = 0.0, y: Tensor | float = 0.0, z: Tensor | float = 0.0) -> Tensor:
    """Components (n,) of rotation vectors, radians -> matrices (n, 3, 3)."""
    components = torch.broadcast_tensors(*(torch.as_tensor(component) for component in (x, y, z)))
    return roma.rotvec_to_rotmat(torch.stack(components, dim=-1))


def _mirror(rotation: Tensor) -> Tensor:
    """A rotation (..., 3, 3) mirrored at x = 0."""
    sign = rotation.new_tensor([-1.0, 1.0, 1.0])
    return rotation * sign[:, None] * sign


def _align(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """The rotation (3, 3) that takes first[0] to first[1], and second[0] as close as possible to second[1]."""
    return _frame(first[1], second[1]) @ _frame(first[0], second[0]).T


def _frame(first: Tensor, second: Tensor) -> Tensor:
    """Orthonormal columns (3, 3): `first`, the part of `second` perpendicular to it, and their normal."""
    a = first / first.norm()
    b = second - (second @ a) * a
    b = b / b.norm()
    return torch.stack((a, b, torch.linalg.cross(a, b)), dim=1)


class Capsule(NamedTuple):
    """A thick line between two joints; `end` may overshoot its joint."""

    start: str
    end: str
    radius: float  # metres
    reach: float = 1.0  # where the line ends, in lengths from start to end


_CAPSULES = {
    "belly": Capsule("pelvis.L", "spine02", 0.115),
    "chest": Capsule("spine02", "neck01", 0.115, reach=0.8),
    "head": Capsule("neck03", "head", 0.080, reach=4.5),
}
for side in SIDES:
    _CAPSULES |= {
        f"forearm.{side}": Capsule(f"lowerarm01.{side}", f"wrist.{side}", 0.040),
        f"hand.{side}": Capsule(f"wrist.{side}", f"finger3-1.{side}", 0.030, reach=1.6),
        f"thigh.{side}": Capsule(f"upperleg02.{side}", f"lowerleg01.{side}", 0.070),
        f"shin.{side}": Capsule(f"lowerleg01.{side}", f"foot.{side}", 0.048),
    }
_ARM_PARTS, _LEG_PARTS, _TRUNK_PARTS = ("forearm", "hand"), ("thigh", "shin"), ("belly", "chest", "head")
#: The pairs of capsules that may touch.
_PAIRS = (
    *((f"{a}.{s}", b) for a, s, b in product(_ARM_PARTS, SIDES, _TRUNK_PARTS)),
    *((f"{a}.{s}", f"{b}.{t}") for a, s, b, t in product(_ARM_PARTS, SIDES, _LEG_PARTS, SIDES)),
    *((f"{a}.L", f"{b}.R") for a, b in product(_ARM_PARTS, _ARM_PARTS)),
    ("shin.L", "shin.R"),
    ("thigh.L", "shin.R"),
    ("shin.L", "thigh.R"),
    *((f"{a}.{s}", b) for a, s, b in product(_LEG_PARTS, SIDES, ("chest", "head"))),
)
_POINTS = 6  # on the first capsule of a pair


class SelfContact:
    """Penetration depths of poses, from a few capsules around the bones of the mean adult."""

    def __init__(self, body: AnnyBody) -> None:
        self._rest = body.rest_joints.cpu()
        self._parents = body.joint_parents
        joints, capsules, names = list(body.joint_names), _CAPSULES.values(), list(_CAPSULES)
        self._start = torch.tensor([joints.index(c.start) for c in capsules])
        self._end = torch.tensor([joints.index(c.end) for c in capsules])
        self._reach = torch.tensor([c.reach for c in capsules])[:, None]
        self._radius = torch.tensor([c.radius for c in capsules])
        self._first = torch.tensor([names.index(a) for a, _ in _PAIRS])
        self._second = torch.tensor([names.index(b) for _, b in _PAIRS])

    def depth(self, pose: Tensor) -> Tensor:
        """Pose (n, J, 3) -> (n,) largest overlap of two parts, metres; negative if there is a gap."""
        joints = self._joint_positions(pose)
        start, end = joints[:, self._start], joints[:, self._end]  # (n, C, 3)
        line = (end - start) * self._reach
        steps = torch.linspace(0, 1, _POINTS)[:, None]
        points = start[:, self._first, None] + steps * line[:, self._first, None]  # (n, P, points, 3)
        origin, axis = start[:, self._second, None], line[:, self._second, None]
        along = ((points - origin) * axis).sum(-1, keepdim=True) / axis.square().sum(-1, keepdim=True)
        distance = (points - origin - along.clamp(0, 1) * axis).norm(dim=-1).amin(-1)  # (n, P)
        return (self._radius[self._first] + self._radius[self._second] - distance).amax(-1)

    def _joint_positions(self, pose: Tensor) -> Tensor:
        """Heads of the bones (n, J, 3), root at rest."""
        local = roma.rotvec_to_rotmat(pose)
        rotation, position = [], []  # by joint, (n, 3, 3) and (n, 3)
        for joint, parent in enumerate(self._parents):  # Anny lists parents before their children
            if parent < 0:
                rotation.append(local[:, joint])
                position.append(self._rest[joint].expand(len(pose), 3))
            else:
                position.append(position[parent] + rotation[parent] @ (self._rest[joint] - self._rest[parent]))
                rotation.append(rotation[parent] @ local[:, joint])
        return torch.stack(position, dim=1)


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
        body = _rotation(y=spin) @ _rotation(x=fall) @ _rotation(y=yaw)
        camera = _rotation(z=roll) @ _rotation(x=pitch)
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
