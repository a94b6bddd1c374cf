"""Train the tokenizer: body meshes <-> discrete tokens.

    python train_mesh_vqvae.py                       train on random Anny bodies; the same command continues a run
    python train_mesh_vqvae.py mode=test             measure the shipped weights on bodies that were never trained on
    python train_mesh_vqvae.py mode=export           write the run's weights to checkpoint/anny_lite/
    python train_mesh_vqvae.py trainer=gpu           on a GPU

Checkpoints, logs (CSV, TensorBoard) and panels go to `output`. Options: configs/train_mesh_vqvae.yaml.
"""

from omegaconf import DictConfig

from mega.config import main
from mega.training import run_tokenizer


@main("train_mesh_vqvae")
def main(config: DictConfig) -> None:
    run_tokenizer(config)


if __name__ == "__main__":
    main()
