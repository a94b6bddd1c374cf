"""Train the image model: a picture and some tokens -> all tokens, rotation and camera.

    python train_mega.py                  train on datasets/synthetic; the same command continues a run
    python train_mega.py mode=test        measure the shipped weights on datasets/synthetic/test
    python train_mega.py mode=export      write the run's weights to checkpoint/anny_lite/
    python train_mega.py trainer=gpu      on a GPU

Checkpoints, logs (CSV, TensorBoard) and panels go to `output`. Options: configs/train_mega.yaml.
"""

from omegaconf import DictConfig

from mega.config import main
from mega.training import run_image_training


@main("train_mega")
def main(config: DictConfig) -> None:
    run_image_training(config)


if __name__ == "__main__":
    main()
