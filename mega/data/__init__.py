"""Data: random bodies, motions, annotated pictures."""

from mega.data.annotations import Annotations
from mega.data.augmentation import Augmentation
from mega.data.body_meshes import BodyChunks, BodyMeshData
from mega.data.body_tokens import BodyTokenData
from mega.data.image_data import ImageData
from mega.data.image_dataset import ImageDataset
from mega.data.motion_data import AnnotatedMeshData, MotionMeshData, MotionTokenData
from mega.data.motions import MotionDataset, Motions
from mega.data.published_data import PublishedImageData
from mega.data.published_images import PublishedImages

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
