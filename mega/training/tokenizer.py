"""The modes of train_mesh_vqvae.py."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from mega.training.panels import MeshPanels
from mega.training.run import check_mode, fit, load_run_weights, test
from mesh_vq_vae import MeshVQVAE


def run_tokenizer(config: DictConfig) -> None:
    """mode=train fits (and continues), mode=test measures `weights`, mode=export writes `weights` from the run."""
    check_mode(config.mode)
    body = instantiate(config.body)
    data = instantiate(config.data)(body=body)
    if config.mode == "test":
        module = instantiate(config.training)(tokenizer=MeshVQVAE.load(config.weights))
        test(config, module, data)
        return
    module = instantiate(config.training)(tokenizer=instantiate(config.tokenizer)(body=body))
    if config.mode == "train":
        fit(config, module, data, callbacks=[MeshPanels(Path(config.output) / "panels")])
        return
    load_run_weights(module, config.output, config.export_from)
    Path(config.weights).parent.mkdir(parents=True, exist_ok=True)
    module.tokenizer.save(config.weights, dtype=torch.float16)
    print(f"wrote {config.weights}")
