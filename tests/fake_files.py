"""The files that users of the published setups hold, made up: right in every name and shape, senseless in content."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from mega.models import VQMAE
from tests.golden.golden import GOLDEN_DIR, recipe

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = GOLDEN_DIR.parent / "connections_smpl" / "template.ply"
# What makes the published models small enough for tests.
SMALL = ("model.dim=32", "model.encoder_depth=1", "model.decoder_depth=1")
SMALL_VIT = ("backbone.dim=32", "backbone.depth=1", "backbone.heads=2")
PRIOR = "checkpoint/VQMAE/mega_pretrained"

needs_template = pytest.mark.skipif(not TEMPLATE.is_file(), reason=f"no {TEMPLATE} for a body of SMPL's topology")


def composed(script: str, *overrides: str) -> DictConfig:
    """The config of a script."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(script, list(overrides))


def write_body(folder: Path) -> None:
    """`folder/body_models` with a neutral SMPL-H and the regressors as the published instructions give them."""
    mesh = trimesh.load(TEMPLATE, process=False)
    arrays = recipe(GOLDEN_DIR).fake_smplh(mesh.vertices, mesh.faces, 1)
    models = folder / "body_models"
    (models / "smplh" / "neutral").mkdir(parents=True)
    np.savez(models / "smplh" / "neutral" / "model.npz", **arrays)
    np.save(models / "J_regressor_24.npy", arrays["J_regressor"])  # 52 rows, as unzipped from SMPL-H
    np.save(models / "J_regressor_h36m.npy", np.random.default_rng(0).dirichlet(np.full(6890, 0.01), 17))


def write_released(model: nn.Module, path: Path) -> None:
    """A released file of made-up weights, as data-parallel training left them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"module.{k}": v for k, v in recipe(GOLDEN_DIR).fill(model).state_dict().items()}
    torch.save({"model": state, "epoch": 3, "loss": np.float64(0.1)}, path)


def write_project(folder: Path, experiments: dict[str, tuple[str, ...]]) -> Path:
    """A project folder with body, tokenizer, prior, and the image models of `experiments` ({name: overrides})."""
    write_body(folder)
    for name, overrides in experiments.items():
        config = composed("demo", f"experiment={name}", f"body.folder={folder / 'body_models'}", *overrides)
        if not (folder / config.tokenizer_weights).is_file():
            tokenizer = instantiate(config.tokenizer)(body=instantiate(config.body))
            write_released(tokenizer, folder / config.tokenizer_weights)
        write_released(instantiate(config.model), folder / config.weights)
    write_released(VQMAE(dim=32, encoder_depth=1, decoder_depth=1), folder / PRIOR)
    return folder
