"""The errors of people, group by group, and pictures of them: what `test_mega.py` runs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import default_collate

from mega.checkpoints import find_weights
from mega.console import Stopwatch
from mega.evaluation.plots import draw_person, to_jpeg
from mega.evaluation.statistics import METRICS, Results
from mega.evaluation.test_sets import TestSet
from mega.geometry import MM_PER_M, project_weak_perspective, sample_spread, standard_deviation
from mega.metrics import Protocol, best_of, keypoint2d_error, mesh_errors, root_of
from mega.model import CVQMAE
from mega.rendering import far_camera
from mega.sampling import Prediction, sample
from mega_common.files import write_whole

if TYPE_CHECKING:
    from mega.predictor import Predictor

#: Best and mean are reported for the first so many samples of one draw.
SAMPLE_COUNTS = (1, 5, 10, 25)


@dataclass(frozen=True)
class Options:
    """How samples are drawn, see test_mega.py.

    Attributes:
        samples: Q hypotheses per person; 0 measures the deterministic prediction only.
    """

    samples: int = 0
    steps: int = 5
    temperature: float = 1.0
    rule: str = "default"
    seed: int = 0


@torch.no_grad()
def draw_samples(
    model: CVQMAE, prediction: Prediction, options: Options, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random tokens for crops with a deterministic prediction, and how likely the model finds them.

    Returns:
        tokens (B, Q, N) int64.
        score (B, Q): sum over the tokens of their log-probabilities given the image alone.
    """
    drawing = (options.samples, options.steps, options.temperature, generator, options.rule)
    tokens = sample(model, prediction.features, *drawing)
    # Not given a part of the sample: that would favour samples that are consistent with themselves, which fit the image
    # worse.
    log_probabilities = prediction.logits.log_softmax(-1)  # (B, N, K)
    return tokens, log_probabilities.gather(-1, tokens.mT).sum(1)


class Evaluator:
    """Measures groups of people with a model.

    Args:
        protocols: by name; per-joint and per-vertex errors use the first.
        stage: the time of each stage is added to it.
        show: called with each batch, its prediction and its errors per person; None for nothing.
    """

    def __init__(
        self,
        predictor: Predictor,
        people: TestSet,
        protocols: dict[str, Protocol],
        options: Options,
        stage: Stopwatch,
        show: Callable[[dict, Prediction, dict[str, Tensor]], None] | None = None,
    ):
        self.predictor, self.people, self.protocols, self.options = predictor, people, protocols, options
        self.stage, self.show = stage, show
        self.first = next(iter(protocols.values()))
        self.regressors = {name: regressor.to(predictor.device) for name, regressor in people.regressors.items()}
        self.regressor2d = people.regressor2d.to(predictor.device)

    @torch.no_grad()
    def __call__(self, batch: dict, group: int) -> dict[str, Tensor]:
        """Errors of a group of B people.

        Returns:
            {column of `per_sample.csv`: (B,), "joint_error", "joint_spread", "joint_visible": (B, J),
            "vertex_error", "vertex_spread": (V,) sums over the people, mm}.
        """
        batch = {name: value.to(self.predictor.device) for name, value in batch.items()}
        with self.stage("true meshes"):
            truth = self.people.truth(batch)  # (B, V, 3)
        with self.stage("predicting"):
            prediction = self.predictor.predict(batch["image"])
        with self.stage("errors"):
            found = self._of_prediction(batch, prediction, truth)
        if self.options.samples:
            with self.stage("drawing samples"):
                meshes, score = self._draw(prediction, group)
            with self.stage("errors of samples"):
                found |= self._of_samples(meshes, score, truth)
        if self.show is not None:
            with self.stage("pictures of people"):
                self.show(batch, prediction, found)
        return {k: v.cpu().double().sum(0) if k.startswith("vertex_") else v for k, v in found.items()}

    def keypoint_error(self, prediction: Prediction, batch: dict) -> Tensor:
        """Mean distance (B,) of visible keypoints, percent of the box's longer side; NaN where none is visible."""
        on_crop = project_weak_perspective(self.regressor2d @ prediction.mesh, prediction.cam)
        return 100 * keypoint2d_error(on_crop, batch["keypoints2d"], self.people.margin)

    def _of_prediction(self, batch: dict, prediction: Prediction, truth: Tensor) -> dict[str, Tensor]:
        found = self._errors("deterministic", prediction.mesh, truth)
        found["deterministic/2d/keypoints"] = self.keypoint_error(prediction, batch)
        for name, predicted, true in zip(
            ("joint_error", "vertex_error"), self._centred(prediction.mesh), self._centred(truth), strict=True
        ):
            found[name] = MM_PER_M * (predicted - true).norm(dim=-1)
        visible = self.people.visible(batch, self.first)
        return found if visible is None else found | {"joint_visible": visible}

    def _errors(self, variant: str, mesh: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """{VARIANT/PROTOCOL/METRIC: (B,)} of meshes (B, V, 3)."""
        return {
            f"{variant}/{name}/{metric}": values
            for name, protocol in self.protocols.items()
            for metric, values in mesh_errors(mesh, truth, self.regressors[protocol.regressor], protocol).items()
        }

    def _centred(self, mesh: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (..., J, 3) and vertices (..., V, 3) relative to the root of the first protocol."""
        joints = self.regressors[self.first.regressor] @ mesh
        root = root_of(mesh, joints, self.first)
        return (joints - root)[..., list(self.first.joints), :], mesh - root

    def _draw(self, prediction: Prediction, group: int) -> tuple[Tensor, Tensor]:
        """Samples (B, Q, V, 3) in the camera's orientation, and the model's score of each (B, Q)."""
        # Seeded by the group, so that the noise does not depend on what was drawn before.
        generator = torch.Generator(self.predictor.device).manual_seed(self.options.seed * 2**32 + group)
        tokens, score = draw_samples(self.predictor.model, prediction, self.options, generator)
        rotation = prediction.rotation.transpose(1, 2)
        meshes = [self.predictor.tokenizer.decode(drawn) @ rotation for drawn in tokens.unbind(1)]
        return torch.stack(meshes, 1), score

    def _of_samples(self, meshes: Tensor, score: Tensor, truth: Tensor) -> dict[str, Tensor]:
        each = [self._errors("", mesh, truth) for mesh in meshes.unbind(1)]
        errors = {name: torch.stack([e[name] for e in each], 1) for name in each[0]}  # (B, Q)
        found = {}
        for count in counts_of(self.options.samples):
            found |= {f"best_of_{count}{name}": best_of(values, count) for name, values in errors.items()}
            found |= self._errors(f"mean_of_{count}", meshes[:, :count].mean(1), truth)
        likeliest = score.argmax(1, keepdim=True)
        found |= {
            f"likeliest_of_{self.options.samples}{name}": e.gather(1, likeliest)[:, 0] for name, e in errors.items()
        }
        found["spread/apd"], _ = sample_spread(meshes)
        for name, points in zip(("joint_spread", "vertex_spread"), self._centred(meshes), strict=True):
            found[name] = MM_PER_M * standard_deviation(points)
        found["spread/std"] = found["vertex_spread"].mean(1)
        return found


def counts_of(samples: int) -> Sequence[int]:
    """The numbers of samples that are reported when `samples` are drawn."""
    return sorted({count for count in SAMPLE_COUNTS if count < samples} | {samples})


def columns_of(protocols: Sequence[str], samples: int) -> list[str]:
    """The columns of `per_sample.csv`, in their order."""
    variants = ["deterministic"]
    if samples:
        variants += [f"{kind}_of_{count}" for kind in ("best", "mean") for count in counts_of(samples)]
        variants += [f"likeliest_of_{samples}"]
    errors = [f"{variant}/{name}/{metric}" for variant in variants for name in protocols for metric in METRICS]
    return [*errors, "deterministic/2d/keypoints", *(["spread/apd", "spread/std"] if samples else [])]


def gather(found: dict[str, np.ndarray], people: TestSet, protocols: dict[str, Protocol], options: Options) -> Results:
    """The results of all groups, from the arrays that `Evaluator` returned for them."""
    return Results(
        images=people.imgname,
        persons=people.persons(),
        columns={name: found[name] for name in columns_of(list(protocols), options.samples)},
        joint_names=people.joint_names(next(iter(protocols.values()))),
        **{name: found.get(name) for name in ("joint_error", "joint_spread", "joint_visible")},
        **{name: found[name] / len(people) for name in ("vertex_error", "vertex_spread") if name in found},
    )


def describe_run(
    config: DictConfig, predictor: Predictor, people: TestSet, protocols: dict[str, Protocol], options: Options
) -> dict:
    """What the report says about how its numbers were made; see `mega.evaluation.report.write_report`.

    Args:
        config: of test_mega.py.
    """
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True)
    of_model = {"decode": predictor.decode, "tta": predictor.tta, "precision": predictor.precision}
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now().isoformat(timespec="minutes"),
        "commit": commit.stdout.strip() if commit.returncode == 0 else "unknown",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "weights": {os.path.relpath(file): _hash(file) for file in find_weights(config.weights)},
        "data": {"name": people.name, "path": str(people.path), "hash": _hash(people.path), "people": len(people)},
        "options": {**vars(options), **of_model, "mode": str(config.mode), "limit": config.limit},
        "pictures": config.pictures,
        "protocols": protocols,
    }


def _hash(path: Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@torch.no_grad()
def choose_examples(predictor: Predictor, people: TestSet, results: Results, each: int) -> list[dict]:
    """The `each` best, median and worst people by the PVE of the first protocol, as `write_report` draws them."""
    errors = results.columns[next(name for name in results.columns if name.endswith("/PVE"))]
    order = np.argsort(errors, kind="stable")
    each = min(each, len(order))
    if each == 0:
        return []
    middle = (len(order) - each) // 2
    examples = []
    for kind, rows in (("best", order[:each]), ("median", order[middle : middle + each]), ("worst", order[-each:])):
        batch = default_collate([people.items[int(row)] for row in rows])
        batch = {name: value.to(predictor.device) for name, value in batch.items()}
        truth = people.truth(batch).cpu().numpy()
        for i, picture in enumerate(_placed(batch, predictor.predict(batch["image"]))):
            shift = picture.pop("shift")
            examples.append(picture | {"title": f"{kind}: {errors[rows[i]]:.0f} mm", "truth": truth[i] + shift})
    return examples


class PersonPictures:
    """Writes a picture of each person of a measured batch, `000123_NAME_p0.jpg`.

    Pictures that exist are not drawn again, so an interrupted evaluation continues with the missing ones.

    Args:
        folder: made when the first picture is written.
        protocol: name of the protocol whose errors are written below the prediction.
        count: only of the first so many people of the test set.
    """

    def __init__(self, folder: Path, predictor: Predictor, people: TestSet, protocol: str, count: int):
        self.folder, self.protocol, self.count = folder, protocol, count
        self.faces = predictor.tokenizer.faces.cpu().numpy()
        self.images, self.persons = people.imgname, people.persons()

    def __call__(self, batch: dict, prediction: Prediction, found: dict[str, Tensor]) -> None:
        """See `Evaluator`."""
        spread = found.get("vertex_spread")
        placed = _placed(batch, prediction)
        for i, row in enumerate(batch["index"].tolist()):
            path = self.folder / self._file_name(row)
            if row >= self.count or path.is_file():
                continue
            person = placed[i] | {
                "title": f"{Path(self.images[row]).name}, person {self.persons[row]}",
                "errors": self._errors(found, i),
                "spread": None if spread is None else spread[i].cpu().numpy() / MM_PER_M,
            }
            write_whole(path, to_jpeg(draw_person(person, self.faces)))

    def _file_name(self, row: int) -> str:
        # The end of a path says more than its beginning, and file names are limited to 255 bytes.
        name = re.sub(r"[^A-Za-z0-9-]+", "_", str(Path(self.images[row]).with_suffix("")))[-100:].strip("_")
        return f"{row:06}_{name}_p{self.persons[row]}.jpg"

    def _errors(self, found: dict[str, Tensor], i: int) -> str:
        errors = {name: found[f"deterministic/{self.protocol}/{name}"][i] for name in ("PVE", "MPJPE", "PA-MPJPE")}
        return ", ".join(f"{name} {error:.1f}" for name, error in errors.items()) + f" mm ({self.protocol})"


def _placed(batch: dict, prediction: Prediction) -> list[dict]:
    """Each person's crop, "shift" (3,) m to its place, "prediction" there, and the camera "focal", "centre" px."""
    images = batch["image"].permute(0, 2, 3, 1).cpu().numpy().round().astype(np.uint8)
    shifts, focal, centre = far_camera(prediction.cam.cpu().numpy(), images.shape[1])
    meshes = prediction.mesh.cpu().numpy()
    return [
        {"image": image, "shift": shift, "prediction": mesh + shift, "focal": focal, "centre": centre}
        for image, shift, mesh in zip(images, shifts, meshes, strict=True)
    ]
