"""Pre-train the masked transformer: what bodies look like, from tokens without pictures.

    python pretrain_mega.py                  train on random Anny bodies; the same command continues a run
    python pretrain_mega.py mode=test        measure the shipped weights on bodies never trained on
    python pretrain_mega.py mode=export      write the run's weights to checkpoint/anny_lite/
    python pretrain_mega.py trainer=gpu      on a GPU

Checkpoints, logs (CSV, TensorBoard) and panels go to `output`. Options: configs/pretrain_mega.yaml.
"""

from omegaconf import DictConfig

from mega.config import main
from mega.training import run_pretraining


@main("pretrain_mega")
def main(config: DictConfig) -> None:
    run_pretraining(config)


if __name__ == "__main__":
    main()
