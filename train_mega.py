"""Train the image model: an image and some tokens -> all tokens, rotation and camera.

    python train_mega.py                  train on datasets/synthetic; rerun the command to resume
    python train_mega.py mode=export      write the run's weights to checkpoint/anny_lite/
    python train_mega.py trainer=gpu      on a GPU

Checkpoints, logs (CSV, TensorBoard) and panels go to `output`. Options: configs/train_mega.yaml. test_mega.py measures
the exported weights.
"""

from functools import partial

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from mega.backbones import TRAINING_ONLY, start_backbone
from mega.checkpoints import backbone_name, load_tokenizer, read_state, save_model
from mega.config import build, main
from mega.metrics import PROTOCOLS
from mega.model import CVQMAE, load_pretrained_vqmae
from mega.test_time_augmentation import check_tta
from mega.training.callbacks import draw_predictions
from mega.training.checkpoints import checkpoint_folder, find_checkpoint
from mega.training.cvqmae import CVQMAETraining
from mega.training.trainer import fit, model_arguments, prepare_export
from mega_common.weights_io import load_strictly, weights_format


@main("train_mega")
def train_mega(config: DictConfig) -> None:
    L.seed_everything(config.seed, verbose=False)  # initial weights depend on it

    # The body and its tokenizer, trained by train_mesh_vqvae.py
    body = build(config.body)
    tokenizer = load_tokenizer(config.tokenizer_weights, partial(build(config.tokenizer), body=body))
    if tokenizer.n_vertices != len(body.template):
        raise ValueError(
            f"{config.tokenizer_weights} is for meshes of {tokenizer.n_vertices} vertices, "
            f"but the body {body.name} has {len(body.template)}."
        )

    # The image model: backbone and masked transformer, which starts from the prior of pretrain_mega.py
    model = build(config.model, n_tokens=tokenizer.n_tokens, codebook_size=tokenizer.codebook_size)
    if config.mode == "train" and find_checkpoint(checkpoint_folder(config.output)) is None:
        load_start(model, config.pretrained, config.backbone_weights)

    # The data: crops of people with their tokens, meshes and keypoints
    points = torch.linspace(0, tokenizer.n_vertices - 1, config.loss_points).long()
    crop = OmegaConf.to_container(config.crop)
    cut = {"crop_size": crop["size"], "margin": crop["margin"], "patch": crop["patch"]}
    data = build(config.data)(body=body, tokenizer=tokenizer, points=points, **cut)
    tokenizer.keypoint_regressor = data.keypoint_regressor  # losses and errors are on the annotated keypoints

    # Losses, optimizer and validation
    crop |= {"mean": list(model.backbone.mean), "std": list(model.backbone.std)}
    module = CVQMAETraining(model, build(config.training), tokenizer, points, crop, PROTOCOLS[config.protocol])
    if config.mode == "export":
        export(config, module)
    else:
        fit(config, module, data, draw_predictions)


def load_start(model: CVQMAE, pretrained: str | None, backbone_weights: str | None) -> None:
    """Load what a new run starts from.

    Args:
        pretrained: a whole image model, or a VQMAE; None for random weights.
        backbone_weights: what the backbone starts from, see `start_backbone`; not used with a whole image model.
    """
    state = {}
    if pretrained:
        kind = "CVQMAE" if weights_format(pretrained) == "CVQMAE" else "VQMAE"
        state = read_state(pretrained, kind, model.state_dict())
    if any(key.startswith("backbone.") for key in state):
        load_strictly(model, state, pretrained)
        return
    start_backbone(model.backbone, backbone_weights)
    if state:
        load_pretrained_vqmae(model, state)


def export(config: DictConfig, module: CVQMAETraining) -> None:
    """Write the run's weights to `weights`, with all that is needed to build the model and to prepare its crops."""
    average = config.tta.replace("_", "+")
    check_tta(average, module.tokenizer)
    dtype = prepare_export(config, module)
    backbone = module.model.backbone
    description = {
        "model": model_arguments(config.model, module.tokenizer) | {"cond_dim": backbone.out_channels},
        "backbone": backbone_name(backbone),
        "backbone_args": {k: v for k, v in config.backbone.items() if k not in ("_target_", *TRAINING_ONLY)},
        "crop": module.crop,
        "decode": module.config.decode,
        "average": average,
    }
    save_model(module.model, config.weights, description, dtype)
    print(f"wrote {config.weights}")


if __name__ == "__main__":
    train_mega()
