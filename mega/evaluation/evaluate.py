"""What `test_mega.py` measures: the errors of people, in groups that are kept on disk until all are done.

A group is a fixed range of rows. The network always sees whole groups, so rounding, and with it the last digit of every
error, depends neither on the batch size of the reading nor on the number of processes nor on interruptions.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from mega.checkpoints import find_weights
from mega.console import Stopwatch
from mega.evaluation.statistics import Results
from mega.evaluation.test_sets import TestSet
from mega.geometry import MM_PER_M, project_weak_perspective, sample_spread, standard_deviation
from mega.metrics import Protocol, best_of, keypoint2d_error, mesh_errors, root_of
from mega.model import CVQMAE
from mega.predictor import Predictor, Sampling
from mega.sampling import Prediction, sample
from mega_common.files import read_arrays, whole_file, write_whole

#: Best and mean are reported for the first so many samples of one draw.
SAMPLE_COUNTS = (1, 5, 10, 25)
GROUP = 16  # people


@dataclass(frozen=True)
class Options(Sampling):
    """How samples are drawn, see test_mega.py; with 0 samples only the deterministic prediction is measured."""

    rule: str = "default"


@torch.no_grad()
def draw_samples(
    model: CVQMAE, prediction: Prediction, options: Options, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random tokens for crops with a deterministic prediction, and how likely the model finds them.

    Returns:
        tokens (B, Q, N) int64.
        score (B, Q): sum over the tokens of their log-probabilities given the image alone.
    """
    how = (options.samples, options.steps, options.temperature, generator, options.rule)
    tokens = sample(model, prediction.features, *how)
    # Not given a part of the sample: that would favour samples that are consistent with themselves, which fit the image
    # worse.
    log_probabilities = prediction.logits.log_softmax(-1)  # (B, N, K)
    return tokens, log_probabilities.gather(-1, tokens.mT).sum(1)


class Evaluator:
    """Measures groups of people with a model.

    Args:
        protocols: by name; per-joint and per-vertex errors use the first.
        stage: the time of each stage is added to it.
    """

    def __init__(
        self, predictor: Predictor, people: TestSet, protocols: dict[str, Protocol], options: Options, stage: Stopwatch
    ):
        self.predictor, self.people, self.protocols = predictor, people, protocols
        self.options, self.stage = options, stage
        self.first = next(iter(protocols.values()))
        self.regressors = {name: regressor.to(predictor.device) for name, regressor in people.regressors.items()}
        self.regressor2d = people.regressor2d.to(predictor.device)

    @torch.no_grad()
    def __call__(self, batch: dict, group: int) -> tuple[Prediction, Tensor, dict[str, Tensor]]:
        """The prediction, true meshes (B, V, 3) and errors of a group of B people.

        Errors are {column of `per_sample.csv`: (B,), "joint_error", "joint_spread", "joint_visible": (B, J),
        "vertex_error", "vertex_spread": (B, V)}, mm.
        """
        batch = {name: value.to(self.predictor.device) for name, value in batch.items()}
        with self.stage("true meshes"):
            truth = self.people.truth(batch)
        with self.stage("predicting"):
            prediction = self.predictor.predict(batch["image"])
        with self.stage("errors"):
            errors = self._of_prediction(batch, prediction, truth)
        if self.options.samples:
            with self.stage("drawing samples"):
                meshes, score = self._draw(prediction, group)
            with self.stage("errors of samples"):
                errors |= self._of_samples(meshes, score, truth)
        return prediction, truth, errors

    def keypoint_error(self, prediction: Prediction, batch: dict) -> Tensor:
        """Mean distance (B,) of visible keypoints, percent of the box's longer side; NaN where none is visible."""
        on_crop = project_weak_perspective(self.regressor2d @ prediction.mesh, prediction.cam)
        return 100 * keypoint2d_error(on_crop, batch["keypoints2d"], self.people.margin)

    def _of_prediction(self, batch: dict, prediction: Prediction, truth: Tensor) -> dict[str, Tensor]:
        found = self._errors("deterministic", prediction.mesh, truth)
        found["deterministic/2d/keypoints"] = self.keypoint_error(prediction, batch)
        (joints, vertices), (true_joints, true_vertices) = map(self._centred, (prediction.mesh, truth))
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
        meshes = [self.predictor.tokenizer.decode(drawn) @ prediction.rotation.mT for drawn in tokens.unbind(1)]
        return torch.stack(meshes, 1), score

    def _of_samples(self, meshes: Tensor, score: Tensor, truth: Tensor) -> dict[str, Tensor]:
        each = [self._errors("", mesh, truth) for mesh in meshes.unbind(1)]
        errors = {name: torch.stack([e[name] for e in each], 1) for name in each[0]}  # (B, Q)
        samples, likeliest = self.options.samples, score.argmax(1, keepdim=True)
        found = {}
        for count in sorted({count for count in SAMPLE_COUNTS if count < samples} | {samples}):
            found |= {f"best_of_{count}{name}": best_of(values, count) for name, values in errors.items()}
            found |= self._errors(f"mean_of_{count}", meshes[:, :count].mean(1), truth)
        found |= {f"likeliest_of_{samples}{name}": e.gather(1, likeliest)[:, 0] for name, e in errors.items()}
        found["spread/apd"], _ = sample_spread(meshes)
        found["joint_spread"], found["vertex_spread"] = (
            MM_PER_M * standard_deviation(points) for points in self._centred(meshes)
        )
        found["spread/std"] = found["vertex_spread"].mean(1)
        return found


def process() -> tuple[int, int]:
    """Rank of this process and number of processes, from the variables of torchrun or srun."""
    # SLURM_NTASKS counts the tasks of a whole job, and is also set in a shell in which the script runs alone.
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


class Groups:
    """The finished groups of an evaluation, one file per group.

    Args:
        about: description of the evaluation (`describe_run`) with all settings that its numbers and pictures depend on.

    Raises ValueError if the folder holds groups of an evaluation with other settings.
    """

    def __init__(self, folder: Path, people: TestSet, about: dict):
        self.folder, self.people = folder, people
        settings = {name: about[name] for name in ("weights", "data", "options", "pictures", "protocols")}
        text = json.dumps({"group": GROUP, **settings}, indent=2, sort_keys=True, default=vars)
        path = folder / "settings.json"
        if path.is_file() and (before := path.read_text(encoding="utf-8")) != text:
            kept, now = json.loads(before), json.loads(text)
            changed = sorted(key for key in kept.keys() | now.keys() if kept.get(key) != now.get(key))
            raise ValueError(
                f"{folder} holds an interrupted evaluation with different {', '.join(changed)}: remove that folder, "
                "or choose another output=…"
            )
        write_whole(path, text.encode())

    def __len__(self) -> int:
        return -(-len(self.people) // GROUP)

    def path(self, group: int) -> Path:
        return self.folder / f"group_{group:06}.npz"

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Groups of a process that are not measured yet."""
        return [group for group in range(rank, len(self), world_size) if not self.path(group).is_file()]

    def batches(self, stage: Stopwatch, batch_size: int, workers: int) -> Iterator[tuple[int, dict]]:
        """(number, batch) of each missing group of this process, with a progress bar.

        Args:
            batch_size, workers: how images are read; no number depends on them.
        """
        todo = self.missing(*process())
        rows = {group: range(group * GROUP, min((group + 1) * GROUP, len(self.people))) for group in todo}
        order = [row for group in todo for row in rows[group]]
        loader = DataLoader(self.people.items, batch_size, sampler=order, num_workers=workers, collate_fn=list)
        items = (item for batch in loader for item in batch)
        done = len(self) - len(self.missing())
        with tqdm(total=len(self), initial=done, unit=f" groups of {GROUP}", disable=None) as bar:
            for group in todo:
                with stage("reading"):
                    batch = default_collate(list(islice(items, len(rows[group]))))
                yield group, batch
                bar.update()

    def save(self, group: int, errors: dict[str, Tensor]) -> None:
        """Keep the errors of a group, see `Evaluator`; of errors by vertex only the sum over people."""
        kept = {name: e.cpu().double().sum(0) if name.startswith("vertex_") else e for name, e in errors.items()}
        with whole_file(self.path(group)) as file:
            np.savez(file, **{name: values.cpu().numpy() for name, values in kept.items()})

    def wait(self) -> None:
        """Wait for the other processes; raises TimeoutError if none finishes a group for an hour."""
        left, since = len(self), time.monotonic()
        while now := len(self.missing()):
            if now < left:
                left, since = now, time.monotonic()
            if time.monotonic() - since > 3600:
                raise TimeoutError(f"{left} groups of other processes are missing: run the same command again.")
            time.sleep(0.2)

    def results(self, protocol: Protocol) -> Results:
        """All groups together; `protocol` is the one of the joints."""
        groups = [read_arrays(self.path(group)) for group in range(len(self))]
        found = {name: [group[name] for group in groups] for name in groups[0]}
        return Results(
            images=self.people.imgname,
            persons=self.people.persons,
            columns={name: np.concatenate(parts) for name, parts in found.items() if "/" in name},
            joint_names=self.people.joint_names(protocol),
            **{name: np.concatenate(parts) for name, parts in found.items() if name.startswith("joint_")},
            **{name: sum(parts) / len(self.people) for name, parts in found.items() if name.startswith("vertex_")},
        )


def describe_run(
    config: DictConfig, predictor: Predictor, people: TestSet, protocols: dict[str, Protocol], options: Options
) -> dict:
    """What the report says about how its numbers were made; see `mega.evaluation.report.write_report`.

    Args:
        config: the options of test_mega.py.
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
