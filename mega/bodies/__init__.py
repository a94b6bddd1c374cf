"""Body models behind one interface, and the poses they take."""

from mega.bodies.anny import AnnyBody
from mega.bodies.body import KEYPOINTS, MIRRORED_KEYPOINTS, BodyModel
from mega.bodies.pose_sampler import PoseSampler
from mega.bodies.smplh import SMPLHBody

__all__ = ["KEYPOINTS", "MIRRORED_KEYPOINTS", "AnnyBody", "BodyModel", "PoseSampler", "SMPLHBody"]
