"""Convert raw data sets into the annotation files and pictures that training and evaluation read.

    python tools/prepare_data.py 3dpw              datasets/3dpw/3dpw_{train,validation,test}.npz
    python tools/prepare_data.py emdb              datasets/emdb/emdb_test.npz
    python tools/prepare_data.py emdb dataset.part=emdb2 dataset.validation_share=0.1     emdb2_{train,validation}.npz
    python tools/prepare_data.py h36m              pictures of datasets/h36m_train/h36m_train.npz, from the videos
    python tools/prepare_data.py mpi_inf_3dhp      the same for datasets/mpi-inf-3dhp/mpi_inf_3dhp_train.npz
    python tools/prepare_data.py bedlam_check      reports everything that is wrong with BEDLAM's files; changes nothing

The first word is short for dataset=3dpw and so on. configs/dataset/ lists the options of each data set.

Next to every annotation file, NAME_report.json says how many people of each sequence were kept, why the others were
not, and what went wrong. Files that cannot be used are reported and skipped; the exit status is then 1.
"""

import sys

from omegaconf import DictConfig

from mega.config import as_option, build, main


@main("prepare_data", rewrite=as_option("dataset"))
def run(config: DictConfig) -> int:
    if config.dataset is None:
        raise ValueError(
            "Choose a data set: python tools/prepare_data.py 3dpw | emdb | h36m | mpi_inf_3dhp | bedlam_check"
        )
    problems = build(config.dataset, _convert_="all")
    if problems:
        print(f"{problems} problem{'s' if problems > 1 else ''}, see above.", file=sys.stderr)
    return int(problems > 0)


if __name__ == "__main__":
    run()
