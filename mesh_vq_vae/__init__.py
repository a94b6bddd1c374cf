"""Mesh-VQ-VAE: body meshes as discrete tokens. A standalone package that does not depend on `mega`."""

from mesh_vq_vae.graph_conv import FullyConvAE
from mesh_vq_vae.hierarchy import SMPL_SEEDS, SMPL_STEPS, Hierarchy, build_hierarchy, read_hierarchy
from mesh_vq_vae.mesh_ops import aligned_vertex_error, mirrored_vertices, unique_edges, vertex_error
from mesh_vq_vae.model import MeshVQVAE, Reconstruction, build_tokenizer
from mesh_vq_vae.quantizer import Quantized, ResidualQuantizer, VectorQuantizerEMA

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
    "build_tokenizer",
    "mirrored_vertices",
    "read_hierarchy",
    "unique_edges",
    "vertex_error",
]
