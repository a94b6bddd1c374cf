"""Data: random bodies, motions, annotated pictures."""

from mega.data.loading import Augmentation
from mega.data.motion_data import MotionMeshData, MotionTokenData
from mega.data.motions import MotionDataset, Motions
from mega.data.random_bodies import BodyMeshData, BodyTokenData
from mega.data.smpl_images import SMPLImageData, SMPLImages
from mega.data.synthetic_images import SyntheticAnnotations, SyntheticImageData, SyntheticImages

__all__ = [
    "Augmentation",
    "BodyMeshData",
    "BodyTokenData",
    "MotionDataset",
    "MotionMeshData",
    "MotionTokenData",
    "Motions",
    "SMPLImageData",
    "SMPLImages",
    "SyntheticAnnotations",
    "SyntheticImageData",
    "SyntheticImages",
]
