"""The tokenizer of a body: built for its mesh, or read from a file of ours or a released one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from mega.external_files import CONFIGS, locate, require
from mega_common.weights_io import is_released
from mesh_vq_vae import MeshVQVAE, build_hierarchy

if TYPE_CHECKING:  # trained weights of ours need no body model
    from mega.bodies import BodyModel


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
