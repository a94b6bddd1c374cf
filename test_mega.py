"""Evaluate an image model on a test set and write a report.

    python test_mega.py                                         the shipped weights on datasets/synthetic/test
    python test_mega.py mode=stochastic samples=25              several hypotheses per person, and their calibration
    python test_mega.py experiment=mega_hrnet testset=3dpw      the published model on your files
    python test_mega.py testset=datasets/mine/test/annotations.npz limit=500
    torchrun --nproc-per-node=4 test_mega.py …                  on several GPUs, each person exactly once

    testset=synthetic      synthetic | 3dpw | 3dpw_occ | 3dpw_pc | emdb | FILE.npz, of make_synthetic.py or in the form
                           of the released data; its image names start from its own folder or the current one, or from
                           testset.root=DIR. testset.batch_size=16 testset.workers=1: how images are read, which changes
                           no number
    protocol=null          mega | standard | hips | coco17 or a list; null takes all that the test set has
                           (docs/evaluation.md)
    limit=null             only the first so many people
    mode=deterministic     deterministic | stochastic, which adds samples to it
    samples=25 steps=5 temperature=1 rule=default seed=0        of the stochastic mode; with rule=published one token
                           stays masked, as for the published numbers
    decode=null            argmax | soft: mesh of the likeliest codes (published) or of the mean codes; null takes what
                           the weights ask for
    tta=null               test-time augmentation: none | flip | shift | flip_shift (docs/predictions.md); null takes
                           what the weights ask for
    weights=anny_lite      name of a published setup, or a folder
    device=auto precision=fp32 compile=false                    as demo.py; with precision=auto errors depend on the
                           machine
    output=null            folder of the report; null is outputs/test/WEIGHTS_TESTSET_MODE
    examples=4             so many of the best, the median and the worst people are drawn
    pictures=0             all, or a number of people, from the first: one picture for each, pictures/000123_NAME_p0.jpg
                           in the report's folder, with the crop, the prediction in place and from the side, its errors,
                           and with mode=stochastic the standard deviation of the samples at each vertex

The output folder gets report.md with its pictures, summary.json and per_sample.csv (one row per person, one column per
error). Rerunning the command resumes an interrupted evaluation. `python tools/compare_reports.py A B` compares two.
"""

import shutil
from pathlib import Path

from omegaconf import DictConfig

import mega
from mega.config import build, file_as_testset, main, sweep_folder
from mega.console import Stopwatch
from mega.data.smpl_images import BadPictureError
from mega.evaluation.evaluate import Evaluator, Groups, Options, describe_run, process
from mega.evaluation.plots import choose_examples, write_person_pictures
from mega.evaluation.report import REPORT, write_report


@main("test_mega", file_as_testset)
def run(config: DictConfig) -> None:
    stopwatch = Stopwatch()
    # How images are read is the loader's business, not that of the test set.
    reading = {name: config.testset.pop(name) for name in ("batch_size", "workers")}
    with stopwatch("loading"):
        body = build(config.body)
        model_options = {name: config[name] for name in ("precision", "compile", "decode", "tta")}
        predictor = mega.load(config.weights, config.device, **model_options)
        people = build(config.testset, body=body, crop=predictor.crop, limit=config.limit)
        protocols = people.choose_protocols(config.protocol)
    options = Options(
        samples=config.samples if config.mode == "stochastic" else 0,
        **{name: config[name] for name in ("steps", "temperature", "rule", "seed")},
    )
    name = f"{Path(config.weights).stem}_{people.name}_{config.mode}"
    output = Path(config.output or Path("outputs/test", name, sweep_folder()))
    about = describe_run(config, predictor, people, protocols, options)

    # Measure the groups of people that are not measured yet; their settings must be those of the others.
    groups = Groups(output / "partial", people, about)
    if done := len(groups) - len(groups.missing()):
        print(f"Resuming: {done} of {len(groups)} groups are done.")
    evaluate, first = Evaluator(predictor, people, protocols, options, stopwatch), next(iter(protocols.values()))
    drawn = groups.folder / "pictures"  # pictures of other settings must not be mixed in either
    count = len(people) if config.pictures == "all" else config.pictures
    try:
        for group, batch in groups.batches(stopwatch, **reading):
            measured = evaluate(batch, group)
            if count:
                with stopwatch("pictures of people"):
                    write_person_pictures(drawn, people, batch, *measured, first.name, predictor.faces, count)
            groups.save(group, measured[-1])
    except BadPictureError as error:
        raise ValueError(f"{error} The groups measured so far are kept: rerunning the command resumes.") from error
    if process()[0] != 0:
        return
    groups.wait()

    # Write the report.
    with stopwatch("pictures of examples"):
        results = groups.results(first)
        examples = choose_examples(predictor, people, results, config.examples)
    about["seconds"] = dict(stopwatch.seconds)
    write_report(output, results, about, predictor.faces, predictor.tokenizer.template.cpu().numpy(), examples)
    if drawn.is_dir():
        for unfinished in drawn.glob(".*.tmp"):  # of a process that was killed
            unfinished.unlink()
        shutil.rmtree(output / "pictures", ignore_errors=True)
        drawn.rename(output / "pictures")
    shutil.rmtree(groups.folder)

    print(f"{len(results)} people; the report is {output / REPORT}")
    for name in protocols:
        errors = {m: results.columns[f"deterministic/{name}/{m}"].mean() for m in ("PVE", "MPJPE", "PA-MPJPE")}
        print(f"{name:<10}" + "".join(f"{metric:>10} {error:7.1f} mm" for metric, error in errors.items()))


if __name__ == "__main__":
    run()
