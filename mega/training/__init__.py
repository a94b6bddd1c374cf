"""Training: losses, Lightning modules, and the runs of the training scripts."""

from mega.training.tokenizer import build_tokenizer, run_tokenizer

__all__ = ["build_tokenizer", "run_tokenizer"]
