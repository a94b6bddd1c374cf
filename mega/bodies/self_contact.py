"""How deep a pose drives the body into itself, told from a few capsules around the bones of the mean adult."""

from itertools import product
from typing import NamedTuple

import roma
import torch
from torch import Tensor

from mega.bodies.anny import AnnyBody
from mega.bodies.rig import SIDES


class Capsule(NamedTuple):
    """A thick line between two joints; `end` may overshoot its joint."""

    start: str
    end: str
    radius: float  # metres
    reach: float = 1.0  # where the line ends, in lengths from start to end


_LIMBS = {
    "forearm": Capsule("lowerarm01", "wrist", 0.040),
    "hand": Capsule("wrist", "finger3-1", 0.030, reach=1.6),
    "thigh": Capsule("upperleg02", "lowerleg01", 0.070),
    "shin": Capsule("lowerleg01", "foot", 0.048),
}
_CAPSULES = {f"{name}.{side}": capsule for name, capsule in _LIMBS.items() for side in SIDES} | {
    "belly": Capsule("pelvis.L", "spine02", 0.115),
    "chest": Capsule("spine02", "neck01", 0.115, reach=0.8),
    "head": Capsule("neck03", "head", 0.080, reach=4.5),
}
_ARM, _LEG, _TRUNK = ("forearm", "hand"), ("thigh", "shin"), ("belly", "chest", "head")
_PAIRS = (
    *((f"{a}.{s}", b) for a, s, b in product(_ARM, SIDES, _TRUNK)),
    *((f"{a}.{s}", f"{b}.{t}") for a, s, b, t in product(_ARM, SIDES, _LEG, SIDES)),
    *((f"{a}.L", f"{b}.R") for a, b in product(_ARM, _ARM)),
    ("shin.L", "shin.R"),
    ("thigh.L", "shin.R"),
    ("shin.L", "thigh.R"),
    *((f"{a}.{s}", b) for a, s, b in product(_LEG, SIDES, ("chest", "head"))),
)
_POINTS = 6  # on the first capsule of a pair


class SelfContact:
    """Penetration depths of poses of one body.

    Args:
        body: whose bones the capsules lie around.
    """

    def __init__(self, body: AnnyBody) -> None:
        self._rest = body.rest_joints.cpu()
        self._parents = body.joint_parents
        index = {name: i for i, name in enumerate(body.joint_names)}

        def joint(capsule: str, bone: str) -> int:
            side = capsule[-2:] if capsule[-2:] in (".L", ".R") else ""
            return index[bone if bone in index else bone + side]

        self._start = torch.tensor([joint(name, c.start) for name, c in _CAPSULES.items()])
        self._end = torch.tensor([joint(name, c.end) for name, c in _CAPSULES.items()])
        self._reach = torch.tensor([c.reach for c in _CAPSULES.values()])[:, None]
        self._radius = torch.tensor([c.radius for c in _CAPSULES.values()])
        names = list(_CAPSULES)
        self._first = torch.tensor([names.index(a) for a, _ in _PAIRS])
        self._second = torch.tensor([names.index(b) for _, b in _PAIRS])
        self._chain = self._joints_needed()

    def depth(self, pose: Tensor) -> Tensor:
        """Pose (n, J, 3) -> (n,) how far the two worst parts overlap, metres; negative is the free space between."""
        joints = self._joint_positions(pose)
        start, end = joints[:, self._start], joints[:, self._end]  # (n, C, 3)
        line = (end - start) * self._reach
        steps = torch.linspace(0, 1, _POINTS)[:, None]
        points = start[:, self._first, None] + steps * line[:, self._first, None]  # (n, P, points, 3)
        origin, axis = start[:, self._second, None], line[:, self._second, None]
        along = ((points - origin) * axis).sum(-1, keepdim=True) / axis.square().sum(-1, keepdim=True)
        distance = (points - origin - along.clamp(0, 1) * axis).norm(dim=-1).amin(-1)  # (n, P)
        return (self._radius[self._first] + self._radius[self._second] - distance).amax(-1)

    def _joints_needed(self) -> list[int]:
        """The capsules' joints and their ancestors, parents first."""
        needed = set()
        for joint in (*self._start.tolist(), *self._end.tolist()):
            while joint >= 0:
                needed.add(joint)
                joint = self._parents[joint]
        return sorted(needed)  # Anny lists parents before their children

    def _joint_positions(self, pose: Tensor) -> Tensor:
        """Heads of the needed bones (n, J, 3), root at rest; the others stay zero."""
        local = dict(zip(self._chain, roma.rotvec_to_rotmat(pose[:, self._chain]).unbind(1), strict=True))
        turned, position = {}, torch.zeros_like(pose)
        for joint in self._chain:
            parent = self._parents[joint]
            if parent < 0:
                turned[joint], position[:, joint] = local[joint], self._rest[joint]
            else:
                position[:, joint] = position[:, parent] + turned[parent] @ (self._rest[joint] - self._rest[parent])
                turned[joint] = turned[parent] @ local[joint]
        return position
