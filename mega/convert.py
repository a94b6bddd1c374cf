"""What a script's config with `experiment=…` describes, built.

Released weights written as files of ours. What `convert_weights.py` runs.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mega.backbones import TRAINING_ONLY
from mega.checkpoints import BACKBONES, load_into, save_model
from mega.config import build
from mega.model import VQMAE
from mega.predictor import MODEL_FILE, TOKENIZER_FILE, Predictor
from mega_common.weights_io import to_dtype

if TYPE_CHECKING:
    from mega.bodies import BodyModel


def build_body(config: DictConfig) -> BodyModel:
    """The config's body."""
    return build(config.body)


def load_experiment(config: DictConfig, **options) -> Predictor:
    """The config's image model and tokenizer with their weights; options as for `Predictor.of_experiment`."""
    return Predictor.of_experiment(
        instantiate(config.tokenizer),
        config.tokenizer_weights,
        build_body(config),
        instantiate(config.model),
        config.weights,
        OmegaConf.to_container(config.crop),
        **options,
    )


PRIOR_FILE = "vqmae.safetensors"
_DTYPES = {"float32": torch.float32, "float16": torch.float16}
# Arguments of CVQMAE that the prior does not have.
_OF_PICTURES = ("cond_dim", "cond_dropout", "rotcam_dropout", "cam_range")


def convert_weights(config: DictConfig) -> int:
    """Run the script as `configs/convert_weights.yaml` says; the exit status: 0, or 1 after saying what is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if "model" not in config:
            raise ValueError("Say which weights: experiment=mega_hrnet, mega_resnet or mega_vit.")
        _convert(config, Path(config.output or Path("checkpoint") / Path(config.weights).name), _DTYPES[config.dtype])
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _convert(config: DictConfig, output: Path, dtype: torch.dtype) -> None:
    """Read and check everything, then write: nothing is written where a released file is wrong."""
    predictor = load_experiment(config)
    arguments = {k: v for k, v in OmegaConf.to_container(config.model).items() if k not in ("_target_", "backbone")}
    prior, prior_arguments = None, {k: v for k, v in arguments.items() if k not in _OF_PICTURES}
    if Path(config.pretrained).exists():
        prior = load_into(VQMAE(**prior_arguments), config.pretrained)

    backbone = predictor.model.backbone
    backbone_arguments = OmegaConf.to_container(config.backbone)
    description = {
        "model": arguments | {"cond_dim": backbone.out_channels},
        "backbone": next(name for name, kind in BACKBONES.items() if kind is type(backbone)),
        "backbone_args": {k: v for k, v in backbone_arguments.items() if k not in ("_target_", *TRAINING_ONLY)},
        "crop": asdict(predictor.crop),
        "decode": predictor.decoding,
    }
    read = {config.tokenizer_weights: predictor.tokenizer, config.weights: predictor.model, config.pretrained: prior}
    _check_range({path: model for path, model in read.items() if model is not None}, dtype)

    output.mkdir(parents=True, exist_ok=True)
    predictor.tokenizer.save(output / TOKENIZER_FILE, dtype)
    print(f"wrote {output / TOKENIZER_FILE}")
    save_model(predictor.model, output / MODEL_FILE, description, dtype)
    print(f"wrote {output / MODEL_FILE}")
    if prior is None:
        print(f"left out {output / PRIOR_FILE}: there is no {config.pretrained}")
    else:
        save_model(prior, output / PRIOR_FILE, {"model": prior_arguments}, dtype)
        print(f"wrote {output / PRIOR_FILE}")


def _check_range(models: dict[str, nn.Module], dtype: torch.dtype) -> None:
    """Raise ValueError that names the file whose numbers are too large for a type."""
    for path, model in models.items():
        try:
            to_dtype(model.state_dict(), dtype)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
