"""The full-size models of the configs have exactly the released keys, in the released order, with shapes and types."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from hydra.utils import instantiate

from mega.config import compose
from tests.golden.golden import GOLDEN_DIR, assert_state_keys

FILE = GOLDEN_DIR / "state_keys_full.json"
# What the file calls a released model -> (script, groups) of ours.
MODELS = {
    "VQMAE/mega_pretrained (config_vqmae)": ("pretrain_mega", ["model=vqmae"]),
    "CVQMAE/mega_hrnet (config_hrnet)": ("train_mega", ["model=cvqmae", "backbone=hrnet_w48"]),
    "CVQMAE/mega_resnet (config_resnet)": ("train_mega", ["model=cvqmae", "backbone=resnet50"]),
    "CVQMAE/mega_vit (config_vit)": ("train_mega", ["model=cvqmae", "backbone=vit_h"]),
    "Mesh-VQ-VAE (config_medium)": ("train_mesh_vqvae", ["tokenizer=smpl_54"]),
    "Mesh-VQ-VAE (config_full)": ("train_mesh_vqvae", ["tokenizer=smpl_7_residual"]),
    "Mesh-VQ-VAE (config_small)": ("train_mesh_vqvae", ["tokenizer=smpl_400"]),
}

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE} (MEGA_GOLDEN_DIR)")


@pytest.fixture(scope="module")
def smpl_body() -> SimpleNamespace:
    """What the tokenizer needs of a body, of the SMPL topology."""
    mesh = trimesh.load(GOLDEN_DIR.parent / "connections_smpl" / "template.ply", process=False)
    vertices = torch.tensor(np.asarray(mesh.vertices), dtype=torch.float32)
    regressor = torch.zeros(24, len(vertices))
    return SimpleNamespace(faces=torch.tensor(np.asarray(mesh.faces)), template=vertices, keypoint_regressor=regressor)


def test_no_model_of_the_file_is_left_out() -> None:
    assert set(json.loads(FILE.read_text())) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_released_keys(name: str, smpl_body: SimpleNamespace) -> None:
    script, groups = MODELS[name]
    config = compose(script, groups)
    if script == "train_mesh_vqvae":
        model = instantiate(config.tokenizer)(body=smpl_body)
    else:
        with torch.device("meta"):  # shapes only: a billion numbers less
            model = instantiate(config.model)
    assert_state_keys(model, json.loads(FILE.read_text())[name])
