"""Training: losses, Lightning modules, and the runs of the training scripts."""

from mega.training.image_run import run_image_training
from mega.training.pretraining import run_pretraining
from mega.training.tokenizer import run_tokenizer

__all__ = ["run_image_training", "run_pretraining", "run_tokenizer"]
