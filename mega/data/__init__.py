"""Data: random bodies, annotated pictures."""

from mega.data.body_meshes import BodyBatches, BodyMeshData

__all__ = ["BodyBatches", "BodyMeshData"]
