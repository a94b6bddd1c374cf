"""Mesh-VQ-VAE: body meshes as discrete tokens. A standalone package that does not depend on `mega`."""

from mesh_vq_vae.hierarchy import SMPL_SEEDS, SMPL_STEPS, Hierarchy, build_hierarchy, read_hierarchy
from mesh_vq_vae.mesh_ops import aligned_vertex_error, mirrored_vertices, vertex_error
from mesh_vq_vae.model import MeshVQVAE, build_tokenizer
from mesh_vq_vae.quantizer import ResidualQuantizer, VectorQuantizerEMA

__all__ = [
    "SMPL_SEEDS",
    "SMPL_STEPS",
    "Hierarchy",
    "MeshVQVAE",
    "ResidualQuantizer",
    "VectorQuantizerEMA",
    "aligned_vertex_error",
    "build_hierarchy",
    "build_tokenizer",
    "mirrored_vertices",
    "read_hierarchy",
    "vertex_error",
]
