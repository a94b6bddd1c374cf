"""Make the synthetic pictures: clothed people in everyday poses, with everything known about them.

    python make_synthetic.py                                # datasets/synthetic: test 2,000, val 500, train 40,000
    python make_synthetic.py splits.train=100000 seed=1 folder=datasets/more
    python make_synthetic.py processes=8 scene.occluded=0.5

The same seed gives the same pictures with any number of processes. Stopped or killed, the same command goes on where it
was. The fields of `annotations.npz` are told in datasets/README.md.
"""

from hydra.utils import instantiate
from omegaconf import DictConfig

from mega.config import main
from mega.synthetic import build_dataset


@main("make_synthetic")
def main(config: DictConfig) -> None:
    scene = instantiate(config.scene, _convert_="all")
    build_dataset(config.folder, dict(config.splits), config.seed, config.processes, scene, config.overwrite)


if __name__ == "__main__":
    main()
