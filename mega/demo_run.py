"""A folder of pictures in; overlays, meshes, arrays and a table out. What `demo.py` runs."""

import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mega.config import read_device, read_precision
from mega.console import Done, Timings, format_table
from mega.convert import load_experiment
from mega.data.photos import InputError, find_pictures, output_names, read_picture
from mega.detectors import Detector, GivenBoxes
from mega.export import draw_sheet, encode_results, make_output_folder, write_together
from mega.predictor import Predictor, Sampling


@dataclass
class Demo:
    """One picture after the other, from file to files.

    Args:
        sampling: for the stochastic mode; None is the deterministic one.
        focal: px; None assumes one from the picture's size.
        tighten_passes: how often a rough box is tightened around what is predicted in it.
        max_side: of a picture in the drawing, px.
    """

    predictor: Predictor
    detector: Detector
    output: Path
    sampling: Sampling | None = None
    focal: float | None = None
    export: str = "glb"
    tighten_passes: int = 2
    max_side: int = 1024
    done: list[Done] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, paths: Sequence[Path]) -> None:
        """Work through the pictures. One that fails is noted in `failures`; the others are not affected."""
        named = list(zip(paths, output_names(paths), strict=True))
        with logging_redirect_tqdm(), tqdm(named, unit="picture", disable=None, file=sys.stderr) as bar:
            for path, name in bar:
                bar.set_postfix_str(path.name)
                try:
                    self.done.append(self.process(path, name))
                except InputError as error:
                    self._fail(str(error))
                except Exception as error:  # a fault of ours, or out of memory: the other pictures still count
                    self._fail(f"{path} failed unexpectedly: {error!r}.\n{traceback.format_exc()}")

    def process(self, path: Path, name: str) -> Done:
        """One picture; its results are written as `name`… Raises InputError if the picture or its boxes are bad."""
        timings = Timings()
        with timings.stage("read"):
            image = read_picture(path)
        with timings.stage("detect"):
            found = self.detector(path, image)
            boxes = self.predictor.tighten(image, found.boxes, self.tighten_passes) if found.rough else found.boxes
        with timings.stage("predict"):
            estimate = self.predictor.estimate(image, boxes, self.sampling)
        with timings.stage("decode"):
            people = self.predictor.decode(estimate, image.shape[1::-1], self.focal)
        with timings.stage("draw"):
            sheet = draw_sheet(image, people, self.max_side)
        with timings.stage("write"):
            files = encode_results(name, people, sheet, self.export)
            try:
                write_together(self.output, name, files)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
        return Done(path.name, len(people), timings)

    def _fail(self, message: str) -> None:
        self.failures.append(message)
        tqdm.write(message, file=sys.stderr)


def run_demo(config: DictConfig) -> int:
    """Run the demo as `configs/demo.yaml` says; the exit status: 0 if all went well, 1 if anything did not."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        demo, paths = _prepare(config)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    demo.run(paths)
    if demo.done:
        print(f"\n{format_table(demo.done)}\n\nThe results are in {demo.output}/.")
    if demo.failures:
        print(f"\n{len(demo.failures)} of {len(paths)} pictures failed:", file=sys.stderr)
        for message in demo.failures:
            print(f"  {message.splitlines()[0]}", file=sys.stderr)
    return 1 if demo.failures else 0


def _prepare(config: DictConfig) -> tuple[Demo, list[Path]]:
    """Check everything that concerns the whole run. Raises InputError."""
    sampling = _sampling(config)
    paths = find_pictures(config.input)
    output = make_output_folder(config.output)
    if len(paths) > 1 and output.resolve() in {path.parent.resolve() for path in paths}:
        raise InputError(f"The output folder {output} holds the input: drawings would be taken for pictures next time.")
    detector = _detector(config.detector)
    if config.boxes and isinstance(detector, GivenBoxes):
        detector.warn_of_strangers(paths)
    device = read_device(config.device)
    try:
        predictor = _predictor(config, device)
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error
    demo = Demo(
        predictor,
        detector,
        output,
        sampling,
        config.focal,
        config.export,
        tighten_passes=config.tighten_passes,
        max_side=config.max_side,
    )
    return demo, paths


def _predictor(config: DictConfig, device: torch.device) -> Predictor:
    """From the folder `weights`, whose files say what they are, or as an experiment's config describes it."""
    options = {"device": device, "precision": read_precision(config.precision, device), "compile": config.compile}
    average = config.tta and config.tta.replace("_", "+")
    if "model" not in config:
        folder = Path(config.weights).expanduser()
        return Predictor.load(folder, decoding=config.decode, average=average, **options)
    return load_experiment(config, decoding=config.decode or "argmax", average=average or "none", **options)


def _detector(config: DictConfig) -> Detector:
    try:
        return instantiate(config)
    except InstantiationException as error:  # Hydra wraps what the constructor raises
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise


def _sampling(config: DictConfig) -> Sampling | None:
    if config.mode == "deterministic":
        return None
    return Sampling(config.samples, config.steps, float(config.temperature), config.seed)
