"""Evaluation reports side by side: who is better, by how much, and how sure that is.

    python compare_reports.py outputs/test/A outputs/test/B            two or more folders that test_mega.py left
    python compare_reports.py A B C names=[plain,flip,shift] baseline=flip output=outputs/comparison
    python compare_reports.py A variants=[deterministic,mean_of_25]    the kinds of prediction of one report

    reports=[]             the folders; bare words are short for it
    names=null             what to call them; null takes the names of the folders
    baseline=0             with which all others are compared: its number, from 0, or its name
    variants=[deterministic]           also best_of_5, mean_of_25, likeliest_of_25 …, or patterns: 'mean_of_*'. Of one
                           report these are compared with one another
    protocols=null         coco17, mega, standard, hips, 2d, or patterns; null takes all that every report has
    metrics=[PVE,MPJPE,PA-MPJPE]       also PA-PVE and keypoints (of the protocol 2d), or patterns: '*'
    output=null            a folder for comparison.md, comparison.json and comparison.png

A difference is that report's error minus the baseline's, of the same person in the same picture, averaged over the
people that all reports have; negative is better. Its interval, at 95 %, is a bootstrap over people; it is marked with *
when 0 lies outside. Reports of other data, or of another protocol under the same name, are refused.
"""

from omegaconf import DictConfig

from mega.config import as_option, main
from mega.evaluation.compare import run_comparison


@main("compare_reports", as_option("reports", many=True))
def main(config: DictConfig) -> int:
    return run_comparison(config)


if __name__ == "__main__":
    main()
