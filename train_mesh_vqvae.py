"""Train the tokenizer: body meshes <-> discrete tokens.

    python train_mesh_vqvae.py                       train on random Anny bodies; rerun the command to resume
    python train_mesh_vqvae.py mode=test             measure the default weights on bodies that were never trained on
    python train_mesh_vqvae.py mode=export           write the run's weights to checkpoint/anny_lite/
    python train_mesh_vqvae.py trainer=gpu           on a GPU

Checkpoints, logs (CSV, TensorBoard) and panels go to `output`. Options: configs/train_mesh_vqvae.yaml.
"""

from functools import partial

import lightning as L
from omegaconf import DictConfig

from mega.checkpoints import load_tokenizer
from mega.config import build, main
from mega.training.callbacks import draw_reconstructions
from mega.training.trainer import fit, prepare_export, test


@main("train_mesh_vqvae")
def train_mesh_vqvae(config: DictConfig) -> None:
    L.seed_everything(config.seed, verbose=False)  # initial weights depend on it

    # The body, whose faces the graph convolutions follow
    body = build(config.body)
    new_tokenizer = partial(build(config.tokenizer), body=body)

    # The tokenizer: new, or from trained weights. In training mode, because an evaluated codebook does not move.
    start = config.weights if config.mode == "test" else config.pretrained
    tokenizer = new_tokenizer() if start is None else load_tokenizer(start, new_tokenizer)
    tokenizer.train(config.mode != "test")
    module = build(config.training)(tokenizer=tokenizer)

    if config.mode == "export":
        tokenizer.save(config.weights, prepare_export(config, module))
        print(f"wrote {config.weights}")
        return

    data = build(config.data)(body=body)  # batches {"vertices": (B, V, 3)} of canonical meshes
    if config.mode == "test":
        test(config, module, data)
    else:
        fit(config, module, data, draw_reconstructions)


if __name__ == "__main__":
    train_mesh_vqvae()
