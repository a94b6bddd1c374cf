"""The tokenizer of a body: built for its mesh, or read from either form of file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mega.external_files import require
from mega_common.weights_io import is_released
from mesh_vq_vae import MeshVQVAE, build_hierarchy

if TYPE_CHECKING:  # who uses trained weights needs no body
    from mega.bodies import BodyModel


def build_tokenizer(body: BodyModel, steps: Sequence[Sequence[int]], seeds: Sequence[int], **options) -> MeshVQVAE:
    """An untrained MeshVQVAE for a body, its hierarchy built from the faces (`steps`, `seeds`: `build_hierarchy`)."""
    hierarchy = build_hierarchy(body.faces.cpu().numpy(), len(body.template), [tuple(s) for s in steps], seeds)
    return MeshVQVAE(
        hierarchy,
        faces=body.faces.cpu(),
        template=body.template.cpu(),
        keypoint_regressor=body.keypoint_regressor.cpu(),
        **options,
    )


def load_tokenizer(path: str | Path, build: Callable[[], MeshVQVAE]) -> MeshVQVAE:
    """The tokenizer in a file, in eval mode.

    Args:
        path: a file of ours, which says itself how to build its tokenizer, or a released one.
        build: makes the tokenizer whose weights a released file holds.

    Raises FileNotFoundError, or ValueError that says what is wrong with the file.
    """
    require(path)
    return build().load_released(path).eval() if is_released(path) else MeshVQVAE.load(path)
