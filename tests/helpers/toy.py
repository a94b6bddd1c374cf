"""A made-up body, tokenizer and image model, small enough for a whole run of the demo in a fraction of a second."""

from pathlib import Path

import numpy as np
import torch
import trimesh

from mega.backbones import EfficientNetLite0
from mega.checkpoints import MODEL_FILE, TOKENIZER_FILE, save_model
from mega.model import CVQMAE
from mesh_vq_vae import MeshVQVAE, build_hierarchy

N_CODES = 32
CROP = {"size": 64, "margin": 1.1, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def toy_tokenizer(seed: int = 0) -> MeshVQVAE:
    """An ellipsoid 1.7 m high, of 162 vertices, that the tokens dent a little."""
    mesh = trimesh.creation.icosphere(subdivisions=2)
    template = np.asarray(mesh.vertices, np.float32) * [0.25, 0.85, 0.15]
    faces = np.asarray(mesh.faces)
    regressor = np.random.default_rng(seed).dirichlet(np.full(len(template), 0.05), size=23)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = MeshVQVAE(
            build_hierarchy(faces, len(template), steps=((2, 2, 2), (2, 2, 2))),
            connections=["pool0", "pool1", "unpool1", "unpool0"],
            channels=[8, 4, 8, 3],
            n_bases=[4, 4, 4, 4],
            residual_rates=[0.0, 0.0, 0.0, 0.0],
            init="fan_in",
            n_codes=N_CODES,
            around_template=True,
            faces=faces,
            template=template,
            keypoint_regressor=regressor,
        )
    with torch.no_grad():
        tokenizer.codebook.mul_(0.05 / tokenizer.codebook.std())
    return tokenizer.eval()


def toy_model(n_tokens: int, seed: int = 0) -> tuple[CVQMAE, dict]:
    """An untrained image model and the config to save it with."""
    size = {"n_tokens": n_tokens, "codebook_size": N_CODES, "dim": 32, "encoder_depth": 1, "encoder_heads": 2}
    size |= {"decoder_depth": 1, "decoder_heads": 2, "cond_dim": EfficientNetLite0(pretrained=False).out_channels}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CVQMAE(EfficientNetLite0(pretrained=False), **size)
        with torch.no_grad():
            for head in (model.decoder.rot_predictor, model.decoder.cam_predictor):
                head.weight.mul_(20)  # so that different crops get visibly different cameras
            model.decoder.head.weight.mul_(10)
    return model.eval(), {"model": size, "backbone": "efficientnet_lite0", "crop": CROP}


def write_toy_weights(folder: Path) -> Path:
    """A weights folder as `mega.load` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = toy_tokenizer()
    tokenizer.save(folder / TOKENIZER_FILE)
    model, config = toy_model(tokenizer.n_tokens)
    save_model(model, folder / MODEL_FILE, config)
    return folder
