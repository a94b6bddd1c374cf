"""MeshVQVAE: a tokenizer that maps body meshes to a few dozen discrete tokens and back (Fiche et al., ECCV 2024).

    tokenizer = MeshVQVAE.load("checkpoint/anny_lite/tokenizer.safetensors")
    tokens = tokenizer.encode(vertices)      # (B, V, 3) metres, canonical -> (B, N)
    vertices = tokenizer.decode(tokens)      # (B, N) -> (B, V, 3)

Canonical meshes have root rotation zero and are centred on the mean of their vertices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mega_common.weights_io import load_strictly, read_released, read_weights, to_dtype, without_surplus, write_weights
from mesh_vq_vae.graph_conv import FullyConvAE
from mesh_vq_vae.hierarchy import Hierarchy, build_hierarchy
from mesh_vq_vae.mesh_ops import mirrored_vertices
from mesh_vq_vae.quantizer import Quantized, ResidualQuantizer, VectorQuantizerEMA

_MESH = ("faces", "template", "keypoint_regressor")  # stored with the weights
_DECODED_AT_ONCE = 8  # meshes; more gain nothing on a CPU


class Reconstruction(NamedTuple):
    vertices: Tensor  # (B, V, 3) metres
    quantized: Quantized


class MeshVQVAE(nn.Module):
    """Fully convolutional mesh autoencoder with a quantized bottleneck.

    Args:
        hierarchy: connection matrices of the mesh.
        connections, channels, n_bases, residual_rates, init: the layers, see `FullyConvAE`.
        n_codes: K, codes of the codebook.
        n_quantizers: 1, or R > 1 for a residual quantizer (tokens (B, N, R)).
        shared_codebook: whether the quantizers of a residual quantizer share one codebook.
        around_template: the network's input and output are offsets from the template instead of positions (not
            published; a small network then does not have to learn the mean body).
        faces: (F, 3), template: (V, 3) metres, keypoint_regressor: (J, V). They are stored with the weights, so that
            decoding needs no body model. `around_template` needs the template.
        ema: commitment, decay, restart_below and start_from_data, see `VectorQuantizerEMA`.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        connections: Sequence[str],
        channels: Sequence[int],
        n_bases: Sequence[int],
        residual_rates: Sequence[float],
        init: str = "published",
        n_codes: int = 512,
        n_quantizers: int = 1,
        shared_codebook: bool = False,
        around_template: bool = False,
        faces: np.ndarray | Tensor | None = None,
        template: np.ndarray | Tensor | None = None,
        keypoint_regressor: np.ndarray | Tensor | None = None,
        **ema: float,
    ):
        super().__init__()
        layers = {
            "connections": list(connections),
            "channels": list(channels),
            "n_bases": list(n_bases),
            "residual_rates": list(residual_rates),
        }
        quantizers = {"n_quantizers": n_quantizers, "shared_codebook": shared_codebook}
        self.config = {**layers, **quantizers, "n_codes": n_codes, **ema, "around_template": around_template}
        if around_template and template is None:
            raise ValueError("around_template=True needs the template mesh")
        self.hierarchy, self.n_vertices, self.codebook_size = hierarchy, hierarchy.n_vertices, n_codes
        autoencoder = FullyConvAE(hierarchy, **layers, init=init)
        self.n_tokens, self.latent_dim = autoencoder.latent_shape
        # The released files have two names for the one autoencoder.
        self.encoder = nn.ModuleDict({"model": autoencoder})
        if n_quantizers > 1:
            self.vq_vae = ResidualQuantizer(**quantizers, n_codes=n_codes, dim=self.latent_dim, **ema)
        else:
            self.vq_vae = VectorQuantizerEMA(n_codes, self.latent_dim, **ema)
        self.decoder = nn.ModuleDict({"model": autoencoder})
        for name, value in (("faces", faces), ("template", template), ("keypoint_regressor", keypoint_regressor)):
            mesh = None if value is None else _read_mesh(name, value, hierarchy.n_vertices)
            self.register_buffer(name, mesh, persistent=False)

    @property
    def codebook(self) -> Tensor:
        """(K, D) of the one quantizer."""
        return self.vq_vae.codebook

    @cached_property
    def mirrored(self) -> Tensor:
        """(V,) int64 on the CPU, see `mirrored_vertices`.

        Raises ValueError without template or faces, or when the mesh is not symmetric.
        """
        if self.template is None or self.faces is None:
            raise ValueError("a tokenizer without template and faces cannot be mirrored: use tta=none")
        return torch.from_numpy(mirrored_vertices(self.template.cpu().numpy(), self.faces.cpu().numpy()))

    def forward(self, vertices: Tensor, quantize: bool = True) -> Reconstruction:
        """Vertices (B, V, 3) through the bottleneck and back. `quantize=False` skips the codebook (warm-up)."""
        z = self.encode_latents(vertices)
        zero = z.new_zeros(())
        quantized = self.vq_vae(z) if quantize else Quantized(z, None, zero, zero)
        return Reconstruction(self.decode_latents(quantized.latents), quantized)

    def encode_latents(self, vertices: Tensor) -> Tensor:
        """Vertices (B, V, 3) -> latents (B, N, D) before quantization."""
        if vertices.shape[1:] != (self.n_vertices, 3):
            raise ValueError(f"expected meshes of shape (B, {self.n_vertices}, 3), got {tuple(vertices.shape)}")
        if self.config["around_template"]:
            vertices = vertices - self.template
        return self.encoder["model"].encode(vertices)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents or codes (B, N, D) -> vertices (B, V, 3). Differentiable."""
        vertices = self.decoder["model"].decode(latents)
        return vertices + self.template if self.config["around_template"] else vertices

    @torch.no_grad()
    def encode(self, vertices: Tensor) -> Tensor:
        """Canonical vertices (B, V, 3) in metres -> tokens (B, N) int64, (B, N, R) with R residual quantizers."""
        return self.quantize(self.encode_latents(vertices))

    @torch.no_grad()
    def quantize(self, latents: Tensor) -> Tensor:
        """Latents (B, N, D) -> tokens (B, N) int64, (B, N, R) with R residual quantizers. The codebook stays."""
        return self.vq_vae.assign(latents)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) or (B, N, R) -> canonical vertices (B, V, 3) in metres.

        With R residual quantizers, `decode(tokens[..., :r])` decodes a coarser mesh from the first r.
        """
        return self.decode_latents(self.vq_vae.lookup(tokens))

    @torch.no_grad()
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes (..., N, D), any number of them -> canonical vertices (..., V, 3) m, in the memory of a few meshes."""
        parts = codes.flatten(0, -3).split(_DECODED_AT_ONCE)
        return torch.cat([self.decode_latents(part) for part in parts]).unflatten(0, codes.shape[:-2])

    def expected_codes(self, logits: Tensor) -> Tensor:
        """Logits (B, N, K) -> mean codes (B, N, D) under their softmax, for `decode_latents`. Differentiable.

        Where several codes are likely, the decoded mesh lies between theirs: closer to the truth on average than the
        likeliest one, but less realistic. For a single codebook only.
        """
        return logits.softmax(-1) @ self.codebook

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, configuration and mesh to one safetensors file, completely or not at all.

        Args:
            dtype: type of the weights, e.g. torch.float16 for half the size. The mesh keeps its own type.
        """
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("decoder.")}
        mesh = {k: torch.from_numpy(v) for k, v in self.hierarchy.items()}
        mesh |= {k: getattr(self, k) for k in _MESH if getattr(self, k) is not None}
        topology = {f"topology.{k}": v for k, v in mesh.items()}
        write_weights(path, to_dtype(state, dtype) | topology, "MeshVQVAE", self.config)

    @classmethod
    def load(cls, path: str | Path) -> MeshVQVAE:
        """Read a file written by `save`, in eval mode, float32. Strict.

        Raises FileNotFoundError, or ValueError with what is wrong with the file.
        """
        tensors, config = read_weights(path, "MeshVQVAE")
        topology = {k.removeprefix("topology."): tensors.pop(k) for k in list(tensors) if k.startswith("topology.")}
        mesh = {k: topology.pop(k, None) for k in _MESH}
        try:
            hierarchy = Hierarchy.from_matrices({k: v.numpy() for k, v in topology.items()})
            model = cls(hierarchy, **config, **mesh)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"The config in {path} does not describe a MeshVQVAE: {error}.") from error
        twins = {k.replace("encoder.", "decoder.", 1): v for k, v in tensors.items() if k.startswith("encoder.")}
        load_strictly(model, tensors | twins, path)
        return model.eval()

    def save_released(self, path: str | Path, **extra) -> None:
        """Write the released form: `torch.save` of {"model": state dict, **extra}."""
        torch.save({"model": self.state_dict(), **extra}, path)

    def load_released(self, path: str | Path) -> MeshVQVAE:
        """Read a released file (`torch.save` dict with key "model") into this model.

        Raises FileNotFoundError, or ValueError with the keys and shapes that differ.
        """
        load_strictly(self, without_surplus(self.state_dict(), read_released(path), path), path)
        return self


def _read_mesh(name: str, value: np.ndarray | Tensor, n_vertices: int) -> Tensor:
    """Faces, template or keypoint regressor as a tensor. Raises ValueError when it is not of the hierarchy's mesh."""
    tensor = torch.as_tensor(np.asarray(value), dtype=torch.int64 if name == "faces" else torch.float32)
    if name == "faces":
        fits = tensor.min() >= 0 and tensor.max() < n_vertices
        found = f"the faces name vertices {tensor.min()}..{tensor.max()}"
    else:
        fits = tensor.ndim == 2 and tensor.shape[0 if name == "template" else 1] == n_vertices
        found = f"{name} has shape {tuple(tensor.shape)}"
    if not fits:
        raise ValueError(f"the connection matrices are for meshes of {n_vertices} vertices, but {found}")
    return tensor


def build_tokenizer(body, steps: Sequence[Sequence[int]], seeds: Sequence[int], **options) -> MeshVQVAE:
    """An untrained tokenizer for a body.

    Args:
        body: its faces (F, 3), template (V, 3) metres and keypoint_regressor (J, V), as attributes.
        steps, seeds: how the mesh hierarchy is built, see `build_hierarchy`.
        options: arguments of `MeshVQVAE`.
    """
    mesh = {name: getattr(body, name).cpu() for name in _MESH}
    hierarchy = build_hierarchy(mesh["faces"].numpy(), len(mesh["template"]), [tuple(step) for step in steps], seeds)
    return MeshVQVAE(hierarchy, **mesh, **options)
