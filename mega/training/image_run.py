"""The modes of train_mega.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mega.backbones import TRAINING_ONLY, start_backbone
from mega.launch import build, say_missing_files
from mega.metrics import PROTOCOLS
from mega.models import (
    CVQMAE,
    check_average,
    load_cvqmae,
    load_into,
    load_pretrained_vqmae,
    load_tokenizer,
    read_state,
    save_model,
)
from mega.training.checkpoints import find_checkpoint
from mega.training.image import CVQMAETraining
from mega.training.panels import PicturePanels
from mega.training.run import begin, checkpoint_folder, export_dtype, fit, load_run_weights, model_arguments, test
from mesh_vq_vae import MeshVQVAE
from mesh_vq_vae.files import is_released, load_strictly, weights_format


@say_missing_files
def run_image_training(config: DictConfig) -> None:
    """mode=train fits (and continues), mode=test measures `weights`, mode=export writes `weights` from the run."""
    begin(config)
    body = build(config.body)
    tokenizer = load_tokenizer(config.tokenizer_weights, partial(instantiate(config.tokenizer), body=body))
    model, crop = _model_to_test(config, tokenizer) if config.mode == "test" else _new_model(config, tokenizer)
    if config.mode == "train" and find_checkpoint(checkpoint_folder(config.output)) is None:
        _start_from_trained(config, model)
    if tokenizer.n_vertices != len(body.template):
        raise ValueError(
            f"{config.tokenizer_weights} is for meshes of {tokenizer.n_vertices} vertices, "
            f"but the body {body.name} has {len(body.template)}."
        )
    points = torch.linspace(0, tokenizer.n_vertices - 1, config.loss_points).long()
    cut = {"crop_size": crop["size"], "margin": crop["margin"], "patch": crop.get("patch", False)}
    data = instantiate(config.data)(body=body, tokenizer=tokenizer, points=points, **cut)
    # Losses and errors look at the keypoints that the pictures are annotated with.
    tokenizer.keypoint_regressor = data.keypoint_regressor
    parts = {"model": model, "tokenizer": tokenizer, "points": points, "crop": crop}
    module: CVQMAETraining = instantiate(config.training)(**parts, protocol=PROTOCOLS[config.protocol])
    match config.mode:
        case "test":
            test(config, module, data)
        case "export":
            _export(config, module)
        case "train":
            fit(config, module, data, callbacks=[PicturePanels(Path(config.output) / "panels")])


def _new_model(config: DictConfig, tokenizer: MeshVQVAE) -> tuple[CVQMAE, dict]:
    """The model that the config describes, and how its crops are prepared."""
    model = instantiate(config.model, n_tokens=tokenizer.n_tokens, codebook_size=tokenizer.codebook_size)
    normalisation = {"mean": list(model.backbone.mean), "std": list(model.backbone.std)}
    return model, OmegaConf.to_container(config.crop) | normalisation


def _model_to_test(config: DictConfig, tokenizer: MeshVQVAE) -> tuple[CVQMAE, dict]:
    """The model in `weights`: a file of ours says itself what it is, a released one is what the config says."""
    if weights_format(config.weights) is not None:
        model, description = load_cvqmae(config.weights)
        return model, description["crop"]
    model, crop = _new_model(config, tokenizer)
    return load_into(model, config.weights), crop


def _start_from_trained(config: DictConfig, model: CVQMAE) -> None:
    """What a new run starts from: a whole image model, or a backbone and a VQMAE, each trained or not."""
    state = {}
    if config.pretrained:
        kind = "CVQMAE" if weights_format(config.pretrained) == "CVQMAE" else "VQMAE"
        state = read_state(config.pretrained, kind, model.state_dict())
    if any(key.startswith("backbone.") for key in state):
        load_strictly(model, state, config.pretrained)
        return
    start_backbone(model.backbone, config.backbone_weights)
    if state:
        load_pretrained_vqmae(model, state)


def _export(config: DictConfig, module: CVQMAETraining) -> None:
    if is_released(config.weights):
        raise ValueError(
            f"{config.weights} is a released file and is not overwritten: say where to write, weights=FILE."
        )
    check_average(config.average, module.tokenizer)
    load_run_weights(module, config.output, config.export_from)
    model = module.model
    description = {
        "model": model_arguments(config.model, module.tokenizer) | {"cond_dim": model.backbone.out_channels},
        "backbone": config.backbone_name,
        "backbone_args": {k: v for k, v in config.backbone.items() if k not in ("_target_", *TRAINING_ONLY)},
        "crop": module.crop,
        "decode": module.decode,
        "average": config.average,
    }
    save_model(model, config.weights, description, dtype=export_dtype(config))
    print(f"wrote {config.weights}")
