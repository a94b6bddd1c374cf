"""The files that users of the published setups hold, made up: right in every name and shape, senseless in content."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from mega.config import compose
from mega.model import VQMAE
from tests.golden.golden import GOLDEN_DIR, recipe

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = GOLDEN_DIR.parent / "connections_smpl" / "template.ply"
# What makes the published models small enough for tests.
SMALL = ("model.dim=32", "model.encoder_depth=1", "model.decoder_depth=1")
SMALL_VIT = ("backbone.dim=64", "backbone.depth=1", "backbone.heads=16")
PRIOR = "checkpoint/VQMAE/mega_pretrained"

needs_template = pytest.mark.skipif(not TEMPLATE.is_file(), reason=f"no {TEMPLATE} for a body of SMPL's topology")


def composed(script: str, *overrides: str) -> DictConfig:
    """The config of a script."""
    return compose(script, overrides)


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
    """A project folder with body, tokenizer, prior, and the image models of `experiments` ({name: overrides}).

    The overrides must agree on the transformer's size, which is also the prior's.
    """
    write_body(folder)
    for name, overrides in experiments.items():
        config = composed("train_mega", f"experiment={name}", f"body.folder={folder / 'body_models'}", *overrides)
        if not (folder / config.tokenizer_weights).is_file():
            tokenizer = instantiate(config.tokenizer)(body=instantiate(config.body))
            write_released(tokenizer, folder / config.tokenizer_weights)
        write_released(instantiate(config.model), folder / config.weights)
    sizes = {name: config.model[name] for name in ("dim", "encoder_depth", "decoder_depth")}
    write_released(VQMAE(**sizes), folder / PRIOR)
    return folder


def write_data_sets(folder: Path) -> None:
    """Bodies of both genders, COCO's annotations and 3DPW's, five people each in two pictures of noise."""
    for gender in ("m", "f"):
        shutil.copytree(folder / "body_models" / "smplh" / "neutral", folder / "body_models" / "smplh" / gender)
    rng = np.random.default_rng(0)
    people = 5
    columns = {
        "imgname": np.array([f"images/{i % 2}.jpg" for i in range(people)]),
        "center": np.full((people, 2), 100.0),
        "gender": np.array(["m", "f", "neutral", "male", "female"]),
    }
    pose, shape = 0.2 * rng.standard_normal((people, 72)), rng.standard_normal((people, 10))
    points = np.concatenate([rng.uniform(0, 200, (people, 24, 2)), np.ones((people, 24, 1))], axis=2)
    flavours = {
        "coco/coco": {"scale": np.full(people, 0.9), "pose_cam": pose, "shape": shape, "part": points},
        "3dpw/3dpw_test": {
            "imgname": np.char.add("datasets/3dpw/", columns["imgname"]),
            "scale": np.full(people, 1 / 0.9),
            "root_orient": pose[:, :3],
            "pose_body": pose[:, 3:],
            "betas": shape,
            "j2d": points,
        },
    }
    for path, flavour in flavours.items():
        (folder / "datasets" / path).parent.joinpath("images").mkdir(parents=True)
        np.savez(folder / "datasets" / f"{path}.npz", **columns | flavour)
        for i in range(2):
            picture = rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)
            cv2.imwrite(str((folder / "datasets" / path).parent / "images" / f"{i}.jpg"), picture)


def write_mixture(folder: Path) -> None:
    """COCO's annotations and pictures, from `write_data_sets`, once more as those of the other three data sets."""
    for path in ("mpii/mpii", "h36m_train/h36m_train", "mpi-inf-3dhp/mpi_inf_3dhp_train"):
        target = folder / "datasets" / f"{path}.npz"
        shutil.copytree(folder / "datasets" / "coco", target.parent)
        (target.parent / "coco.npz").rename(target)


def write_animations(folder: Path, motions: int = 12, frames: int = 20) -> Path:
    """`folder/datasets/bedlam_animations` with motions of both forms and all genders, a shape, and a broken file."""
    animations = folder / "datasets" / "bedlam_animations"
    rng = np.random.default_rng(0)
    spellings = ("male", "f", "neutral", "m", "female")
    for i in range(motions):
        path = animations / f"person_{i % 3}" / f"{i:04}" / "motion_seq.npz"
        path.parent.mkdir(parents=True)
        columns, betas = ((165, 11), (72, 10))[i % 2]
        pose = 0.2 * rng.standard_normal((frames + i, columns))
        np.savez(path, poses=pose, betas=rng.standard_normal(betas), gender=spellings[i % 5], trans=pose[:, :3])
    np.savez(animations / "person_0" / "shape.npz", betas=np.zeros(10))
    (animations / "person_0" / "broken.npz").write_bytes(path.read_bytes()[:1000])
    return animations
