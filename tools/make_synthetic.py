"""Make the synthetic images: clothed people in everyday poses, with full annotations.

    python tools/make_synthetic.py                          # datasets/synthetic: test 2,000, val 500, train 40,000
    python tools/make_synthetic.py splits.train=100000 seed=1 folder=datasets/more
    python tools/make_synthetic.py processes=8 scene.occluded=0.5

The same seed gives the same images with any number of processes. Rerunning the command resumes an interrupted run.
datasets/README.md describes the fields of `annotations.npz`.
"""

from pathlib import Path

from omegaconf import DictConfig

from mega.config import build, main
from mega.synthetic import build_split


@main("make_synthetic")
def run(config: DictConfig) -> None:
    scene = build(config.scene, _convert_="all")
    for split, n_images in config.splits.items():
        if n_images > 0:
            build_split(Path(config.folder) / split, n_images, config.seed, config.processes, scene, config.overwrite)


if __name__ == "__main__":
    run()
