"""What `test_mega.py` runs: people measured group by group, then the report."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from mega.bodies import BodyModel
from mega.data.published_images import BadPictureError
from mega.evaluation.examples import PersonPictures, choose_examples
from mega.evaluation.groups import GROUP, Groups, process, run_groups
from mega.evaluation.measure import Measuring, Options, columns_of
from mega.evaluation.report import write_report
from mega.evaluation.results import Results
from mega.evaluation.subject import Subject
from mega.evaluation.testsets import TestSet
from mega.launch import as_list, build
from mega.metrics import Protocol
from mega.models import AVERAGES
from mega.models.samplers import DECODINGS, RULES

_ROOT = Path(__file__).resolve().parents[2]
_PICTURES = "pictures"


def name_file(arguments: list[str]) -> list[str]:
    """A command line with data=FILE.npz, as Hydra wants it: data=file data.path=FILE.npz."""
    named = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        is_file = key == "data" and value.endswith(".npz")
        named += ["data=file", f"data.path={value}"] if is_file else [argument]
    return named


def run_evaluation(config: DictConfig) -> int:
    """Evaluate as `configs/test_mega.yaml` says; the exit status."""
    try:
        _evaluate(config)
    except (OSError, ValueError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1
    except InstantiationException as error:
        print(error.__cause__ or error, file=sys.stderr)
        return 1
    return 0


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - began


def _evaluate(config: DictConfig) -> None:
    clock = Clock()
    with clock("loading"):
        options = _checked(config)
        body = build(config.body)
        subject = Subject.load(config, body)
        people = _test_set(config, body, subject.crop)
        protocols = people.choose_protocols(as_list(config.protocol))
        options = replace(options, decode=subject.decode, average=subject.average)
    output = Path(config.output or f"outputs/test/{Path(config.weights).stem}_{people.name}_{config.mode}")
    about = _about(config, subject, people, protocols, options)
    groups = Groups(output / "partial", len(people), _settings(about))
    if left := len(groups) - len(groups.missing()):
        print(f"going on with {left} of {len(groups)} groups done")
    drawn = groups.folder / _PICTURES  # until all are there: a picture of other settings is not taken for one of these
    n_pictures = len(people) if config.pictures == "all" else config.pictures
    show = PersonPictures(drawn, subject, people, next(iter(protocols)), n_pictures) if n_pictures else None
    measure = Measuring(subject, people, protocols, options, clock, show)
    try:
        run_groups(groups, people.items, measure, subject.device, config.data.batch_size, config.data.workers, clock)
    except BadPictureError as error:
        raise ValueError(f"{error} What was measured before it is kept: the same command goes on.") from error
    if process()[0] != 0:
        return
    groups.wait()
    with clock("pictures of examples"):
        results = _gather(groups, people, protocols, options)
        examples = choose_examples(subject, people, results, options, config.examples)
    about["seconds"] = dict(clock.seconds)
    faces, template = subject.tokenizer.faces.cpu().numpy(), subject.tokenizer.template.cpu().numpy()
    write_report(output, results, about, faces, template, examples)
    if drawn.is_dir():
        for unfinished in drawn.glob(".*.tmp"):  # left by a process that was killed
            unfinished.unlink()
        shutil.rmtree(output / _PICTURES, ignore_errors=True)
        drawn.rename(output / _PICTURES)
    groups.remove()
    _say(output, results, protocols)


def _checked(config: DictConfig) -> Options:
    for name, choices in (("mode", ("deterministic", "stochastic")), ("sampler", RULES)):
        if config[name] not in choices:
            raise ValueError(f"{name}={config[name]} is not known: choose from {', '.join(choices)}.")
    for name, choices in (("decode", DECODINGS), ("average", AVERAGES)):
        if config[name] not in (None, *choices):
            raise ValueError(f"{name}={config[name]} is not known: choose from {', '.join(choices)}, or null.")
    for name in ("samples", "steps", "limit"):
        if not (config[name] is None and name == "limit") and (not isinstance(config[name], int) or config[name] < 1):
            raise ValueError(f"{name}={config[name]} must be a whole number of at least 1.")
    if not isinstance(config.examples, int) or config.examples < 0:
        raise ValueError(f"examples={config.examples} must be a whole number of at least 0.")
    pictures = config.pictures
    if pictures != "all" and (type(pictures) is not int or pictures < 0):
        raise ValueError(f"pictures={pictures} is not known: give all, or how many people (0 for none).")
    samples = config.samples if config.mode == "stochastic" else 0
    drawing = {name: config[name] for name in ("steps", "temperature", "sampler", "seed")}
    return Options(samples=samples, **drawing)


def _test_set(config: DictConfig, body: BodyModel, crop: dict) -> TestSet:
    """The config's test set; with an experiment and no `data`, what the experiment's training names as its test."""
    data = config.data
    if "test" in data:
        described = {"_target_": "mega.evaluation.testsets.published_test", **data.test}
        described["standard"] = "emdb" if "emdb" in str(data.test.path) else "3dpw"
    else:
        described = {k: v for k, v in OmegaConf.to_container(data).items() if k not in ("batch_size", "workers")}
    return build(OmegaConf.create(described), body=body, crop=crop, limit=config.limit)


def _about(
    config: DictConfig, subject: Subject, people: TestSet, protocols: dict[str, Protocol], options: Options
) -> dict:
    """What a reader of the report has to know; see `write_report`."""
    folder = Path(config.weights)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder, Path(config.tokenizer_weights)]
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now().isoformat(timespec="minutes"),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "weights": {str(file): _hash(file) for file in files},
        "data": {"name": people.name, "path": str(people.path), "hash": _hash(people.path), "people": len(people)},
        "options": {**vars(options), "mode": config.mode, "precision": subject.precision, "limit": config.limit},
        "pictures": config.pictures,
        "protocols": protocols,
    }


def _settings(about: dict) -> dict:
    """What the files of a group depend on."""
    protocols = {name: vars(protocol) for name, protocol in about["protocols"].items()}
    return {"group": GROUP, "protocols": protocols, **{k: about[k] for k in ("weights", "data", "options", "pictures")}}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=_ROOT, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def _gather(groups: Groups, people: TestSet, protocols: dict[str, Protocol], options: Options) -> Results:
    found = groups.load()
    means = {name: found[name] / len(people) for name in ("vertex_error", "vertex_spread") if name in found}
    by_joint = {name: found.get(name) for name in ("joint_error", "joint_spread", "joint_visible")}
    return Results(
        images=people.imgname,
        persons=people.persons(),
        columns={name: found[name] for name in columns_of(list(protocols), options.samples)},
        joint_names=people.joint_names(next(iter(protocols.values()))),
        **by_joint,
        **means,
    )


def _say(output: Path, results: Results, protocols: dict[str, Protocol]) -> None:
    print(f"{len(results)} people; the report is {output / 'report.md'}")
    for name in protocols:
        errors = {m: results.columns[f"deterministic/{name}/{m}"].mean() for m in ("PVE", "MPJPE", "PA-MPJPE")}
        print(f"{name:<10}" + "".join(f"{metric:>10} {value:7.1f} mm" for metric, value in errors.items()))
