"""The tokenizer of a body: built for its mesh, or read from a file of ours or a released one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf
from torch import Tensor

from mega.external_files import CONFIGS, locate, require
from mega_common.weights_io import is_released
from mesh_vq_vae import MeshVQVAE, build_hierarchy

if TYPE_CHECKING:  # trained weights of ours need no body model
    from mega.bodies import BodyModel


_DECODED_AT_ONCE = 8  # meshes; more are not faster on a CPU


def build_tokenizer(body: BodyModel, steps: Sequence[Sequence[int]], seeds: Sequence[int], **options) -> MeshVQVAE:
    """An untrained MeshVQVAE for a body; its hierarchy is built from the faces (`steps`, `seeds`)."""
    hierarchy = build_hierarchy(body.faces.cpu().numpy(), len(body.template), [tuple(s) for s in steps], seeds)
    return MeshVQVAE(
        hierarchy,
        faces=body.faces.cpu(),
        template=body.template.cpu(),
        keypoint_regressor=body.keypoint_regressor.cpu(),
        **options,
    )


def load_tokenizer(path: str | Path, build: Callable[[], MeshVQVAE] | None = None, root: str | Path = ".") -> MeshVQVAE:
    """The tokenizer in a file, in eval mode.

    Args:
        path: a file of ours, which stores its configuration, or a released one.
        build: makes the untrained tokenizer for a released file; None makes MEGA's, of 54 tokens.
        root: folder with the `body_models` that MEGA's is built from.

    Raises FileNotFoundError, or ValueError that says what is wrong with the file.
    """
    path = locate(path)
    require(path)
    if not is_released(path):
        return MeshVQVAE.load(path)
    build = build or (lambda: _published_tokenizer(root))
    return build().load_released(path).eval()


def _published_tokenizer(root: str | Path) -> MeshVQVAE:
    """The untrained tokenizer of the published MEGA, for the user's SMPL-H in `root`."""
    from mega.bodies import SMPLHBody

    layers = OmegaConf.to_container(OmegaConf.load(CONFIGS / "tokenizer" / "smpl_54.yaml"))
    options = {name: value for name, value in layers.items() if not name.startswith("_")}
    return build_tokenizer(SMPLHBody(locate(Path(root) / "body_models")), **options)


def decode_in_parts(tokenizer: MeshVQVAE, codes: Tensor) -> Tensor:
    """Codes (..., N, D), any number of them, -> canonical vertices (..., V, 3) m, in the memory of a few meshes."""
    vertices = codes.new_empty((*codes.shape[:-2], tokenizer.n_vertices, 3))
    flat_codes, flat_vertices = codes.flatten(0, -3), vertices.flatten(0, -3)
    for start in range(0, len(flat_codes), _DECODED_AT_ONCE):
        part = slice(start, start + _DECODED_AT_ONCE)
        flat_vertices[part] = tokenizer.decode_latents(flat_codes[part])
    return vertices
