"""Curves of one or several trainings in one picture, from their CSV logs.

    python plot_training.py                                        every run below runs/ -> curves.png
    python plot_training.py runs=[runs/tokenizer,runs/other]       these; runs of the same kind share panels
    python plot_training.py metrics=[PVE,PA-*] log=true            some quantities only, on a logarithmic scale

    runs=null              folders that were the `output` of a training; null takes all below `root` that have logs
    root=runs              where to look for them
    output=curves.png      the picture; .png, .pdf or .svg
    metrics=null           names without train/ or val/, or patterns such as 'val*' or *_mm; null takes all
    smooth=0.8             weight of the moving average of training curves, which are drawn faintly as they are too;
                           0 up to, but without, 1: 0 shows the values alone, 0.98 the trend
    log=false              true: values on a logarithmic scale, in panels where all are positive
    columns=4              panels beside one another

A panel shows one quantity, in training (thin) and in validation (with dots). Of a run that was continued the newest
value of each step counts. Prints the last and the best value of each validated quantity of each run. A run whose logs
are missing or damaged is named and the others are still drawn; the exit status is then 1.
"""

import sys

import hydra
from omegaconf import DictConfig

from mega.training.plot_run import run_plot


@hydra.main(version_base="1.3", config_path="configs", config_name="plot_training")
def main(config: DictConfig) -> None:
    sys.exit(run_plot(config))


if __name__ == "__main__":
    main()
