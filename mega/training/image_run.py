"""The modes of train_mega.py."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mega.models import load_cvqmae, load_into, load_pretrained_vqmae, load_vqmae, save_model
from mega.training.image import CVQMAETraining
from mega.training.panels import PicturePanels
from mega.training.run import check_mode, fit, last_checkpoint, load_module_weights, model_arguments, test
from mesh_vq_vae import MeshVQVAE
from mesh_vq_vae.files import weights_format

# Arguments of a backbone that whoever loads its weights has no use for.
_TRAINING_ONLY = ("_target_", "pretrained", "weights", "frozen_stages", "frozen_blocks")


def run_image_training(config: DictConfig) -> None:
    """mode=train fits (and continues), mode=test measures `weights`, mode=export writes `weights` from the run."""
    check_mode(config.mode)
    tokenizer = MeshVQVAE.load(config.tokenizer_weights)
    crop = OmegaConf.to_container(config.crop)
    if config.mode == "test":
        model, description = load_cvqmae(config.weights)
        crop = description["crop"]
    else:
        model = instantiate(config.model, n_tokens=tokenizer.n_tokens, codebook_size=tokenizer.codebook_size)
        crop |= {"mean": list(model.backbone.mean), "std": list(model.backbone.std)}
    points = torch.linspace(0, tokenizer.n_vertices - 1, config.loss_points).long()
    module: CVQMAETraining = instantiate(config.training)(model=model, tokenizer=tokenizer, points=points, crop=crop)
    if config.mode == "export":
        load_module_weights(module, last_checkpoint(config.output))
        description = {
            "model": model_arguments(config.model, tokenizer) | {"cond_dim": model.backbone.out_channels},
            "backbone": config.backbone_name,
            "backbone_args": {k: v for k, v in config.backbone.items() if k not in _TRAINING_ONLY},
            "crop": crop,
            "decode": module.decode,
        }
        save_model(module.model, config.weights, description, dtype=torch.float16)
        print(f"wrote {config.weights}")
        return
    data = instantiate(config.data)(
        body=instantiate(config.body),
        tokenizer=tokenizer,
        points=points,
        crop_size=crop["size"],
        margin=crop["margin"],
    )
    if config.mode == "test":
        test(config, module, data)
        return
    if config.pretrained and not last_checkpoint(config.output).is_file():
        if weights_format(config.pretrained) == "CVQMAE":
            load_into(model, config.pretrained)
        else:
            load_pretrained_vqmae(model, load_vqmae(config.pretrained)[0].state_dict())
        model.train()
    fit(config, module, data, callbacks=[PicturePanels(Path(config.output) / "panels")])
