"""Evaluation of an image model on a test set, with a report.

    python test_mega.py                                         the shipped weights on datasets/synthetic/test
    python test_mega.py mode=stochastic samples=25              several hypotheses a person, and what they are worth
    python test_mega.py experiment=mega_hrnet testset=3dpw    the published model on your files
    python test_mega.py testset=datasets/mine/test/annotations.npz limit=500
    torchrun --nproc-per-node=4 test_mega.py …                  on several GPUs, every person exactly once

    testset=synthetic      synthetic | 3dpw | 3dpw_occ | 3dpw_pc | emdb | FILE.npz, of either form of
                           annotations; its picture names start from its own folder or from the project's, or
                           testset.root=DIR. testset.batch_size=16 testset.workers=1: how
                           pictures are read, which changes no number
    protocol=null          mega | standard | hips | coco17 or a list; null takes all that the test set has
                           (docs/evaluation.md)
    limit=null             only the first so many people
    mode=deterministic     deterministic | stochastic, which adds samples to it
    samples=25 steps=5 temperature=1 rule=default seed=0        of the stochastic mode; rule=published leaves one
                           token undrawn, as the published numbers were made
    decode=null            argmax | soft: the mesh of the likeliest codes, as published, or of the mean codes; null
                           leaves it to the weights
    tta=null               none | flip | shift | flip_shift: mean over crops that are mirrored or moved
                           (docs/predictions.md); null leaves it to the weights
    weights=checkpoint/anny_lite                                folder, or with an experiment its released file
    device=auto precision=fp32 compile=false                    as demo.py; with precision=auto errors depend on the
                           machine
    output=null            folder of the report; null is outputs/test/WEIGHTS_DATA_MODE
    examples=4             of the best, the median and the worst people so many are drawn each
    pictures=0             all, or of the first so many people: a picture of each, named pictures/000123_NAME_p0.jpg in
                           the report's folder: the crop, the prediction in place and from the side, its errors, and
                           in mode=stochastic the standard deviation of the samples at each vertex, in colours

The output folder gets report.md with its pictures, summary.json and per_sample.csv (a row a person, a column an error).
An interrupted evaluation goes on by the same command. `python compare_reports.py A B` compares two.
"""

from omegaconf import DictConfig

from mega.config import file_as_testset, main
from mega.evaluation.evaluate import run_evaluation


@main("test_mega", file_as_testset)
def main(config: DictConfig) -> int:
    return run_evaluation(config)


if __name__ == "__main__":
    main()
