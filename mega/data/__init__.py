"""Data: random bodies, motions, annotated pictures."""

from mega.data.loading import Augmentation
from mega.data.motion_data import AnnotatedMeshData, MotionMeshData, MotionTokenData
from mega.data.motions import MotionDataset, Motions
from mega.data.random_bodies import BodyChunks, BodyMeshData, BodyTokenData
from mega.data.smpl_images import PublishedImageData, PublishedImages
from mega.data.synthetic_images import Annotations, ImageData, ImageDataset

__all__ = [
    "AnnotatedMeshData",
    "Annotations",
    "Augmentation",
    "BodyChunks",
    "BodyMeshData",
    "BodyTokenData",
    "ImageData",
    "ImageDataset",
    "MotionDataset",
    "MotionMeshData",
    "MotionTokenData",
    "Motions",
    "PublishedImageData",
    "PublishedImages",
]
