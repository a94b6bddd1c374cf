"""The errors of one group of people: everything that an evaluation writes down of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mega.evaluation.predict import draw, predict, sampled_canonical
from mega.evaluation.results import METRICS
from mega.evaluation.subject import Subject
from mega.evaluation.testsets import TestSet
from mega.geometry import MM_PER_M, project_weak_perspective, sample_spread
from mega.metrics import Protocol, best_of, keypoint2d_error, mesh_errors, root_of
from mega.models import Predicted

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
        show: Callable[[dict, Predicted, dict[str, Tensor]], None] | None = None,
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

    def _of_prediction(self, batch: dict, predicted: Predicted, truth: Tensor) -> dict[str, Tensor]:
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

    def _on_crop(self, predicted: Predicted, batch: dict) -> Tensor:
        """Mean distance (B,) of visible keypoints, percent of the box's longer side; NaN where none is visible."""
        on_crop = project_weak_perspective(self.regressor2d @ predicted.mesh, predicted.cam)
        return 100 * keypoint2d_error(on_crop, batch["keypoints2d"], self.people.margin)

    def _centred(self, mesh: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (..., J, 3) and vertices (..., V, 3) about the root of the first protocol."""
        joints = self.regressors[self.first.regressor] @ mesh
        root = root_of(mesh, joints, self.first)
        return (joints - root)[..., list(self.first.joints), :], mesh - root

    def _draw(self, predicted: Predicted, group: int) -> tuple[Tensor, Tensor]:
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
