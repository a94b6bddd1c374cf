"""Mesh-VQ-VAE: body meshes as discrete tokens. Knows torch and meshes, nothing of images."""

from .autoencoder import FullyConvAE
from .hierarchy import SMPL_SEEDS, SMPL_STEPS, Hierarchy, build_hierarchy, read_hierarchy, write_hierarchy
from .losses import aligned_vertex_error, vertex_error
from .mirror import mirrored_vertices
from .model import MeshVQVAE, Reconstruction
from .quantizer import Quantized, ResidualQuantizer, VectorQuantizerEMA

__all__ = [
    "SMPL_SEEDS",
    "SMPL_STEPS",
    "FullyConvAE",
    "Hierarchy",
    "MeshVQVAE",
    "Quantized",
    "Reconstruction",
    "ResidualQuantizer",
    "VectorQuantizerEMA",
    "aligned_vertex_error",
    "build_hierarchy",
    "mirrored_vertices",
    "read_hierarchy",
    "vertex_error",
    "write_hierarchy",
]
