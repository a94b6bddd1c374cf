"""Predictions of an image model for crops: one mesh a person, averaged over several views of the crop if so wished, or
many drawn at random.

    predicted = predict(subject, images, decode="soft", average="flip")
    tokens, score = draw(subject, predicted.features, 25, steps=5, temperature=1.0, rule="default", generator=generator)
    for canonical in sampled_canonical(subject, tokens): ...

The errors of one group of people: everything that an evaluation writes down of them.

What is evaluated: an image model and its tokenizer, from our weights folder or as an experiment describes them.

People of an evaluation to look at: the best, the median and the worst, or every one as it is measured.

What `test_mega.py` runs: people measured group by group, then the report.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import default_collate

from mega.bodies import BodyModel
from mega.checkpoints import load_cvqmae, load_into
from mega.config import build
from mega.data.smpl_images import BadPictureError
from mega.evaluation.plots import draw_person, to_jpeg
from mega.evaluation.report import write_report
from mega.evaluation.shards import GROUP, Groups, process, run_groups
from mega.evaluation.statistics import METRICS, Results
from mega.evaluation.test_sets import TestSet
from mega.external_files import require
from mega.geometry import MM_PER_M, crop_camera_to_full, project_weak_perspective, sample_spread
from mega.metrics import Protocol, best_of, keypoint2d_error, mesh_errors, root_of
from mega.model import CVQMAE
from mega.optimize import optimize_for_inference
from mega.sampling import Prediction, predict_deterministic, sample
from mega.test_time_augmentation import check_tta, predict_mesh, stored_tta
from mega.tokenizer import load_tokenizer
from mega_common.atomic_io import write_whole
from mega_common.device import choose_precision
from mesh_vq_vae import MeshVQVAE

if TYPE_CHECKING:
    from mega.bodies import BodyModel


def predict(subject: Subject, images: Tensor, decode: str, average: str = "none") -> Prediction:
    """The deterministic prediction for crops (B, 3, S, S), uint8 or float in [0, 255]; see `predict_mesh`.

    Raises:
        ValueError: if `decode` or `average` is not known, or the mesh cannot be mirrored.
    """
    return predict_mesh(subject.model, subject.tokenizer, subject.normalise(images), decode, average)


@torch.no_grad()
def draw(
    subject: Subject,
    features: Tensor,
    n: int,
    steps: int,
    temperature: float,
    rule: str,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Tokens drawn at random for crops, and how likely the model finds them.

    Args:
        features: (B, C, h, w) of the crops, such as `Prediction.features`.
        n: Q, samples for each.
        steps, temperature, rule, generator: see `mega.sampling.sample`.

    Returns:
        tokens (B, Q, N) int64.
        score (B, Q): the sum over the tokens of their log-probabilities given the picture alone; higher is likelier.
    """
    tokens = sample(subject.model, features, n, steps, temperature, generator, rule)
    # The first pass knows the picture alone. Asked about half of a sample given the other half, the model finds those
    # samples likely that agree with themselves, which fit the picture worse.
    log_probabilities = predict_deterministic(subject.model, features).logits.log_softmax(-1)  # (B, N, K)
    return tokens, log_probabilities.gather(-1, tokens.mT).sum(1)


@torch.no_grad()
def sampled_canonical(subject: Subject, tokens: Tensor) -> Iterator[Tensor]:
    """Canonical meshes (B, V, 3) of tokens (B, Q, N), one sample of everybody at a time."""
    for drawn in tokens.unbind(1):
        yield subject.tokenizer.decode(drawn)


#: Of how many samples, from the same draw, the best, the mean and so on are reported.
SAMPLE_COUNTS = (1, 5, 10, 25)


@dataclass(frozen=True)
class Options:
    """How people are predicted, see test_mega.py.

    Attributes:
        samples: Q hypotheses a person; 0 is the deterministic mode.
        steps, temperature, sampler, seed: of the draws.
        decode, average: of deterministic predictions.
    """

    samples: int = 0
    steps: int = 5
    temperature: float = 1.0
    sampler: str = "default"
    decode: str = "argmax"
    average: str = "none"
    seed: int = 0


class Measuring:
    """Measures groups of people of a test set with a model.

    Args:
        protocols: by name; joints and vertices one by one are measured by the first.
        stage: `stage(name)` is a context that takes the time.
        show: called with each batch, its prediction and what was measured, person by person; None for nothing.
    """

    def __init__(
        self,
        subject: Subject,
        people: TestSet,
        protocols: dict[str, Protocol],
        options: Options,
        stage: Callable,
        show: Callable[[dict, Prediction, dict[str, Tensor]], None] | None = None,
    ):
        self.subject, self.people, self.protocols, self.options = subject, people, protocols, options
        self.stage, self.show = stage, show
        self.first = next(iter(protocols.values()))
        self.regressors = {name: regressor.to(subject.device) for name, regressor in people.regressors.items()}
        self.regressor2d = people.regressor2d.to(subject.device)

    @torch.no_grad()
    def __call__(self, batch: dict, group: int) -> dict[str, Tensor]:
        """Errors of a group of B people whose batch is on the device.

        Returns:
            {column of `per_sample.csv`: (B,), "joint_error", "joint_spread", "joint_visible": (B, J),
            "vertex_error", "vertex_spread": (V,) sums over the people, mm}.
        """
        with self.stage("true meshes"):
            truth = self.people.truth(batch)  # (B, V, 3)
        with self.stage("predicting"):
            predicted = predict(self.subject, batch["image"], self.options.decode, self.options.average)
        with self.stage("errors"):
            found = self._of_prediction(batch, predicted, truth)
        if self.options.samples:
            with self.stage("drawing samples"):
                meshes, score = self._draw(predicted, group)
            with self.stage("errors of samples"):
                found |= self._of_samples(meshes, score, truth)
        if self.show is not None:
            with self.stage("pictures of people"):
                self.show(batch, predicted, found)
        return {k: v.double().sum(0) if k.startswith("vertex_") else v for k, v in found.items()}

    def _of_prediction(self, batch: dict, predicted: Prediction, truth: Tensor) -> dict[str, Tensor]:
        found = self._errors("deterministic", predicted.mesh, truth)
        found["deterministic/2d/keypoints"] = self._on_crop(predicted, batch)
        joints, vertices = self._centred(predicted.mesh)
        true_joints, true_vertices = self._centred(truth)
        found["joint_error"] = MM_PER_M * (joints - true_joints).norm(dim=-1)
        found["vertex_error"] = MM_PER_M * (vertices - true_vertices).norm(dim=-1)
        visible = self.people.visible(batch, self.first)
        return found if visible is None else found | {"joint_visible": visible}

    def _errors(self, variant: str, mesh: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """{VARIANT/PROTOCOL/METRIC: (B,)} of meshes (B, V, 3)."""
        return {
            f"{variant}/{name}/{metric}": values
            for name, protocol in self.protocols.items()
            for metric, values in mesh_errors(mesh, truth, self.regressors[protocol.regressor], protocol).items()
        }

    def _on_crop(self, predicted: Prediction, batch: dict) -> Tensor:
        """Mean distance (B,) of visible keypoints, percent of the box's longer side; NaN where none is visible."""
        on_crop = project_weak_perspective(self.regressor2d @ predicted.mesh, predicted.cam)
        return 100 * keypoint2d_error(on_crop, batch["keypoints2d"], self.people.margin)

    def _centred(self, mesh: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (..., J, 3) and vertices (..., V, 3) about the root of the first protocol."""
        joints = self.regressors[self.first.regressor] @ mesh
        root = root_of(mesh, joints, self.first)
        return (joints - root)[..., list(self.first.joints), :], mesh - root

    def _draw(self, predicted: Prediction, group: int) -> tuple[Tensor, Tensor]:
        """Samples (B, Q, V, 3) in the camera's orientation, and how likely the model finds each (B, Q)."""
        options = self.options
        # The noise follows from the group, not from what was drawn before.
        generator = torch.Generator(self.subject.device).manual_seed(options.seed * 2**32 + group)
        drawing = (options.samples, options.steps, options.temperature, options.sampler, generator)
        tokens, score = draw(self.subject, predicted.features, *drawing)
        across = predicted.rotation.transpose(1, 2)
        return torch.stack([mesh @ across for mesh in sampled_canonical(self.subject, tokens)], 1), score

    def _of_samples(self, meshes: Tensor, score: Tensor, truth: Tensor) -> dict[str, Tensor]:
        samples = self.options.samples
        each = [self._errors("", mesh, truth) for mesh in meshes.unbind(1)]
        errors = {name: torch.stack([e[name] for e in each], 1) for name in each[0]}  # (B, Q)
        likeliest = score.argmax(1, keepdim=True)
        found = {}
        for count in counts_of(samples):
            found |= {f"best_of_{count}{name}": best_of(values, count) for name, values in errors.items()}
            found |= self._errors(f"mean_of_{count}", meshes[:, :count].mean(1), truth)
        found |= {f"likeliest_of_{samples}{name}": e.gather(1, likeliest)[:, 0] for name, e in errors.items()}
        found["spread/apd"], _ = sample_spread(meshes)
        joints, vertices = self._centred(meshes)
        found["joint_spread"] = _standard_deviation(joints)
        found["vertex_spread"] = _standard_deviation(vertices)  # (B, V)
        found["spread/std"] = found["vertex_spread"].mean(1)
        return found


def counts_of(samples: int) -> Sequence[int]:
    """Of how many samples things are reported, when so many are drawn."""
    return sorted({count for count in SAMPLE_COUNTS if count < samples} | {samples})


def columns_of(protocols: Sequence[str], samples: int) -> list[str]:
    """The columns of `per_sample.csv`, in their order."""
    variants = ["deterministic"]
    for kind in ("best", "mean") if samples else ():
        variants += [f"{kind}_of_{count}" for count in counts_of(samples)]
    variants += [f"likeliest_of_{samples}"] if samples else []
    errors = [f"{variant}/{name}/{metric}" for variant in variants for name in protocols for metric in METRICS]
    return [*errors, "deterministic/2d/keypoints", *(["spread/apd", "spread/std"] if samples else [])]


def _standard_deviation(samples: Tensor) -> Tensor:
    """(B, Q, N, 3) m -> (B, N) mm: root of the mean squared distance to the mean."""
    around = samples - samples.mean(1, keepdim=True)
    return MM_PER_M * around.square().sum(-1).mean(1).sqrt()


_TOKENIZER_FILE = "tokenizer.safetensors"
_MODEL_FILE = "cvqmae.safetensors"
_DEVICES = ("auto", "cpu", "cuda")
# What weights ask for that do not say it.
_PUBLISHED = {"decode": "argmax", "average": "none"}  # "average": the TTA


@dataclass
class Subject:
    """An image model, ready to predict.

    Attributes:
        model, tokenizer: in eval mode, on the device.
        crop: how its pictures are prepared: {"size": px, "margin", "mean": RGB, "std": RGB, of pixels in [0, 1],
            "patch": see `PublishedImages`; false if left out}.
        decode, average: of deterministic predictions, what the config says or else the weights; see
            `mega.test_time_augmentation.predict_mesh`.
        precision: of the model's products, "fp32" or "bf16".
    """

    model: CVQMAE
    tokenizer: MeshVQVAE
    crop: dict
    decode: str
    average: str
    device: torch.device
    precision: str = "fp32"

    @classmethod
    def load(cls, config: DictConfig, body: BodyModel) -> Subject:
        """What a config of test_mega.py describes.

        Args:
            config: without a `model`, `weights` is a folder of ours, whose files say what they are. With one, `model`
                and `tokenizer` are built, `weights` and `tokenizer_weights` are their files, released or ours, and
                `crop` has size, margin and patch; mean and std are the backbone's. Also read: decode and average (null
                leaves them to the weights), device, precision, compile.
            body: that an experiment's tokenizer is for.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is damaged or does not fit, or an option is not known; names it.
        """
        device = _device(config.device)
        if config.get("model") is None:
            weights = Path(config.weights).expanduser()
            model, tokenizer, crop, asked = _of_folder(weights)
        else:
            weights = Path(config.weights)
            model, tokenizer, crop, asked = _of_experiment(config, body)
        for name in ("n_tokens", "codebook_size"):
            if (speaks := getattr(model, name)) != (knows := getattr(tokenizer, name)):
                raise ValueError(
                    f"The image model of {weights} and its tokenizer do not belong together: "
                    f"{name} is {speaks} in the model and {knows} in the tokenizer."
                )
        model = model.eval().to(device, memory_format=torch.channels_last)
        precision = choose_precision(config.precision, device)
        model = optimize_for_inference(model, precision, config.compile)
        decode, average = config.decode or asked["decode"], config.tta or asked["average"]
        check_tta(average, tokenizer)
        return cls(model, tokenizer.eval().to(device), crop, decode, average, device, precision)

    def normalise(self, images: Tensor) -> Tensor:
        """Crops (B, 3, S, S), uint8 or float in [0, 255] -> float on the device."""
        return images.to(self.device).float()


def _of_folder(folder: Path) -> tuple[CVQMAE, MeshVQVAE, dict, dict[str, str]]:
    """Model, tokenizer, crop, and what the weights ask for: {"decode", "average"}."""
    for name in (_TOKENIZER_FILE, _MODEL_FILE):
        require(folder / name)
    tokenizer = MeshVQVAE.load(folder / _TOKENIZER_FILE)
    model, config = load_cvqmae(folder / _MODEL_FILE)
    crop = config.get("crop", {})
    if lacking := [name for name in ("size", "margin", "mean", "std") if name not in crop]:
        raise ValueError(f"{folder / _MODEL_FILE} does not say how its pictures are cropped: it lacks {lacking}.")
    return model, tokenizer, crop, {"decode": config.get("decode", "argmax"), "average": stored_tta(config)}


def _of_experiment(config: DictConfig, body: BodyModel) -> tuple[CVQMAE, MeshVQVAE, dict, dict[str, str]]:
    tokenizer = load_tokenizer(config.tokenizer_weights, partial(instantiate(config.tokenizer), body=body))
    model = build(config.model)
    crop = {**OmegaConf.to_container(config.crop), "mean": model.backbone.mean, "std": model.backbone.std}
    return load_into(model, config.weights), tokenizer, crop, _PUBLISHED


def _device(name: str) -> torch.device:
    if name not in _DEVICES:
        raise ValueError(f"device={name} is not known: choose from {', '.join(_DEVICES)}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda was asked for, but PyTorch sees no GPU here: give device=cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # a process a GPU under torchrun


_FAR = 5.0  # focal length in sides of the crop: near the weak perspective of the predicted camera


@torch.no_grad()
def choose_examples(subject: Subject, people: TestSet, results: Results, options: Options, each: int) -> list[dict]:
    """The `each` best, median and worst people by the PVE of the first protocol, as `write_report` draws them."""
    column = next(name for name in results.columns if name.endswith("/PVE"))
    errors = results.columns[column]
    order = np.argsort(errors, kind="stable")
    each = min(each, len(order))
    if each == 0:
        return []
    middle = max(0, (len(order) - each) // 2)
    examples = []
    for kind, rows in (("best", order[:each]), ("median", order[middle : middle + each]), ("worst", order[-each:])):
        batch = {k: v.to(subject.device) for k, v in default_collate([people.items[int(row)] for row in rows]).items()}
        predicted, truth = predict(subject, batch["image"], options.decode, options.average), people.truth(batch)
        shift, camera = _place(predicted.cam, batch["image"].shape[-1])
        for i, row in enumerate(rows):
            examples.append(
                {
                    "title": f"{kind}: {errors[row]:.0f} mm",
                    "image": _pixels(batch["image"][i]),
                    "prediction": (predicted.mesh[i].cpu() + shift[i]).numpy(),
                    "truth": (truth[i].cpu() + shift[i]).numpy(),
                    **camera,
                }
            )
    return examples


class PersonPictures:
    """Writes a picture of each person, `000123_NAME_p0.jpg`, of a batch that has been measured.

    What is there already is left alone, so an interrupted evaluation makes only the missing ones.

    Args:
        folder: of the pictures; made when the first is written.
        protocol: name of the protocol whose errors are written below the prediction.
        count: only of the first so many people of the test set.
    """

    def __init__(self, folder: Path, subject: Subject, people: TestSet, protocol: str, count: int):
        self.folder, self.protocol, self.count = folder, protocol, count
        self.faces = subject.tokenizer.faces.cpu().numpy()
        self.images, self.persons = people.imgname, people.persons()

    def __call__(self, batch: dict, predicted: Prediction, found: dict[str, Tensor]) -> None:
        """See `mega.evaluation.evaluate.Measuring`."""
        shift, camera = _place(predicted.cam, batch["image"].shape[-1])
        spread = found.get("vertex_spread")
        for i, row in enumerate(batch["index"].tolist()):
            path = self.folder / self._file_name(row)
            if row >= self.count or path.is_file():
                continue
            person = {
                "title": f"{Path(self.images[row]).name}, person {self.persons[row]}",
                "errors": self._errors(found, i),
                "image": _pixels(batch["image"][i]),
                "prediction": (predicted.mesh[i].cpu() + shift[i]).numpy(),
                "spread": None if spread is None else spread[i].cpu().numpy() / MM_PER_M,
                **camera,
            }
            write_whole(path, to_jpeg(draw_person(person, self.faces)))

    def _file_name(self, row: int) -> str:
        # The end of a path says more than its beginning, and file names are limited to 255 bytes.
        name = re.sub(r"[^A-Za-z0-9-]+", "_", str(Path(self.images[row]).with_suffix("")))[-100:].strip("_")
        return f"{row:06}_{name}_p{self.persons[row]}.jpg"

    def _errors(self, found: dict[str, Tensor], i: int) -> str:
        errors = {name: found[f"deterministic/{self.protocol}/{name}"][i] for name in ("PVE", "MPJPE", "PA-MPJPE")}
        return ", ".join(f"{name} {error:.1f}" for name, error in errors.items()) + f" mm ({self.protocol})"


def _place(cam: Tensor, size: int) -> tuple[Tensor, dict]:
    """Where people (B, 3) m stand in a camera far from crops of `size` px, and that camera: {"focal", "centre"} px."""
    square = torch.tensor([[0.0, 0.0, size, size]]).expand(len(cam), 4)
    shift = crop_camera_to_full(cam.cpu(), square, torch.tensor([size, size]).float(), _FAR * size)
    return shift, {"focal": _FAR * size, "centre": (size / 2, size / 2)}


def _pixels(image: Tensor) -> np.ndarray:
    """(3, S, S) in [0, 255] -> (S, S, 3) uint8."""
    return image.permute(1, 2, 0).cpu().numpy().round().astype(np.uint8)


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
        protocols = people.choose_protocols(config.protocol)
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
    reading = config.testset.batch_size, config.testset.workers
    try:
        run_groups(groups, people.items, measure, subject.device, *reading, clock)
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
    samples = config.samples if config.mode == "stochastic" else 0
    drawing = {name: config[name] for name in ("steps", "temperature", "seed")} | {"sampler": config.rule}
    return Options(samples=samples, **drawing)


def _test_set(config: DictConfig, body: BodyModel, crop: dict) -> TestSet:
    """The config's test set; with an experiment and no `data`, what the experiment's training names as its test."""
    data = config.testset
    if "test" in data:
        described = {"_target_": "mega.evaluation.test_sets.published_test", **data.test}
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
