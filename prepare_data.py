"""Raw data sets -> the annotation files and pictures that training and evaluation read.

    python prepare_data.py 3dpw              datasets/3dpw/3dpw_{train,validation,test}.npz
    python prepare_data.py emdb              datasets/emdb/emdb_test.npz
    python prepare_data.py emdb dataset.part=emdb2 dataset.validation_share=0.1     emdb2_{train,validation}.npz
    python prepare_data.py h36m              the pictures of datasets/h36m_train/h36m_train.npz, out of the videos
    python prepare_data.py mpi_inf_3dhp      the same of datasets/mpi-inf-3dhp/mpi_inf_3dhp_train.npz
    python prepare_data.py bedlam_check      tells what is there and what is wrong with it; changes nothing

The first word is short for dataset=3dpw and so on. The options of a data set, all in configs/dataset/:

    3dpw          dataset.folder=datasets/3dpw        with sequenceFiles/ and imageFiles/; gets the results
                  dataset.splits=[train,validation,test]
                  dataset.sequences=[downtown_*] dataset.subset=3dpw_downtown     chosen sequences of the splits, as
                                      one file 3dpw_downtown.npz: for 3DPW-OCC and the like, whose lists are not here
    emdb          dataset.folder=datasets/emdb        with P0/, P1/ …; gets the results
                  dataset.part=emdb1 dataset.name=null    emdb1 | emdb2, and the file's name: emdb_test or emdb2
                  dataset.validation_share=0.1            a share of the sequences, or
                  dataset.validation=[P1/*]               these, for validation: NAME_train.npz, NAME_validation.npz
    h36m, mpi_inf_3dhp
                  dataset.labels=FILE.npz             whose imgname says which frames are wanted
                  dataset.videos=DIR                  where the videos are
                  dataset.pictures=null               where the pictures go; null is the folder of the labels
                  dataset.patterns=[REGEX, …]         how imgname is read
                  dataset.video=TEMPLATE              which video a picture is from
                  dataset.first_frame=1               the number that imgname gives to a video's first frame
                  dataset.quality=95                  of the JPEGs
    bedlam_check  dataset.animations=datasets/bedlam_animations                   null for none
                  dataset.annotations=[FILE.npz, DIR, …]                          of BEDLAM's pictures
                  dataset.report=null                 a .json that gets what is said of every file

Beside every annotation file lies NAME_report.json: how many people of every sequence were kept, why the others were
not, and what went wrong. A file that cannot be used is named and the others are still done; the exit status is then 1.
"""

from omegaconf import DictConfig

from mega.config import as_option, main
from mega.data.prepare import run_preparation


@main("prepare_data", as_option("dataset"))
def main(config: DictConfig) -> int:
    return run_preparation(config)


if __name__ == "__main__":
    main()
