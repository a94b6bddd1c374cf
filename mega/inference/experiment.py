"""What a script's config with `experiment=…` describes, built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mega.inference.predictor import Predictor
from mega.launch import build

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
