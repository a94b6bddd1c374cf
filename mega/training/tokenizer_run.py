"""The modes of train_mesh_vqvae.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from mega.config import build
from mega.tokenizer import load_tokenizer
from mega.training.callbacks import MeshPanels
from mega.training.trainer import begin, export_dtype, fit, load_run_weights, test
from mega_common.weights_io import is_released
from mesh_vq_vae.lightning_module import MeshVQVAETraining


def run_tokenizer(config: DictConfig) -> None:
    """mode=train fits (and continues), mode=test measures `weights`, mode=export writes `weights` from the run."""
    begin(config)
    body = build(config.body)
    new_tokenizer = partial(instantiate(config.tokenizer), body=body)
    testing = config.mode == "test"
    start = config.weights if testing else config.pretrained
    # In training mode: an evaluated codebook does not move, and Lightning leaves the mode as it is.
    tokenizer = new_tokenizer() if start is None else load_tokenizer(start, new_tokenizer).train(not testing)
    module = instantiate(config.training)(tokenizer=tokenizer)
    if config.mode == "export":
        _export(config, module)
        return
    data = instantiate(config.data)(body=body)
    if testing:
        test(config, module, data)
    else:
        fit(config, module, data, callbacks=[MeshPanels(Path(config.output) / "panels")])


def _export(config: DictConfig, module: MeshVQVAETraining) -> None:
    if is_released(config.weights):
        raise ValueError(
            f"{config.weights} is a released file and is not overwritten: say where to write, weights=FILE."
        )
    load_run_weights(module, config.output, config.export_from)
    Path(config.weights).parent.mkdir(parents=True, exist_ok=True)
    module.tokenizer.save(config.weights, dtype=export_dtype(config))
    print(f"wrote {config.weights}")
