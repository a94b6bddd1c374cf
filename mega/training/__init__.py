"""Training: losses, Lightning modules, and the runs of the training scripts."""

from mega.training.cvqmae import run_image_training
from mega.training.tokenizer_run import run_tokenizer
from mega.training.vqmae import run_pretraining

__all__ = ["run_image_training", "run_pretraining", "run_tokenizer"]
