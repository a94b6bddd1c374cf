"""From a picture and boxes to people: crop, backbone, masked transformer, tokenizer, camera.

predictor = Predictor.load("checkpoint/anny_lite")
people = predictor(image, boxes)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mega.checkpoints import load_cvqmae, load_into
from mega.geometry import crop_camera_to_full, default_focal, project_perspective, square_box, square_crop
from mega.model import CVQMAE
from mega.optimize import optimize_for_inference
from mega.sampling import sample
from mega.test_time_augmentation import check_tta, predict_mesh, stored_tta
from mega.tokenizer import load_tokenizer
from mesh_vq_vae import MeshVQVAE

if TYPE_CHECKING:  # who uses trained weights needs no body
    from mega.bodies import BodyModel


TOKENIZER_FILE = "tokenizer.safetensors"
MODEL_FILE = "cvqmae.safetensors"


@dataclass(frozen=True)
class Crop:
    """How the image model's pictures were prepared: a square of `margin` times the box's longer side."""

    size: int  # px
    margin: float
    mean: Sequence[float]  # RGB, of pixels in [0, 1]
    std: Sequence[float]
    patch: bool = False  # how boxes of published annotations are cut, see `PublishedImages`


@dataclass(frozen=True)
class Sampling:
    """How many meshes to draw for each person, and how (`mega.sampling.sample`)."""

    samples: int = 25
    steps: int = 5
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """What is seen of P people, before they are put into the full picture."""

    boxes: np.ndarray  # (P, 4) px
    tokens: Tensor  # (P, N) the likeliest ones
    canonical: Tensor  # (P, V, 3) m
    rotation: Tensor  # (P, 3, 3) canonical -> camera
    cam: Tensor  # (P, 3) weak perspective on the crop
    drawn: Tensor | None = None  # (P, Q, N) samples


@dataclass(frozen=True)
class People:
    """P people in the camera frame of the full picture: x right, y down, z forward, metres."""

    vertices: np.ndarray  # (P, V, 3) float32
    faces: np.ndarray  # (F, 3) int32
    boxes: np.ndarray  # (P, 4) float32, px
    tokens: np.ndarray  # (P, N) int64
    keypoints3d: np.ndarray  # (P, 23, 3) float32
    keypoints2d: np.ndarray  # (P, 23, 2) float32, px
    focal: float  # px
    principal_point: np.ndarray  # (2,) float32, px
    samples: np.ndarray | None = None  # (P, Q, V, 3) float32
    uncertainty: np.ndarray | None = None  # (P, V) float32, metres

    def __len__(self) -> int:
        return len(self.vertices)


class Predictor:
    """An image model and the tokenizer whose tokens it speaks.

    Args:
        crop: how the model's pictures are prepared.
        decoding, average: of deterministic predictions, see `predict_mesh`; samples are drawn from the
            crop itself, and take rotation and camera from the averaged prediction.
        precision, compile: of the image model, see `optimize_for_inference`; the model is changed for good. The
            tokenizer decodes in float32 always.
    """

    def __init__(
        self,
        tokenizer: MeshVQVAE,
        model: CVQMAE,
        crop: Crop,
        device: str | torch.device = "cpu",
        decoding: str = "argmax",
        average: str = "none",
        precision: str = "fp32",
        compile: bool = False,
    ):
        for name in ("faces", "keypoint_regressor"):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"The tokenizer was saved without its {name.replace('_', ' ')}.")
        for name in ("n_tokens", "codebook_size"):
            if (speaks := getattr(model, name)) != (knows := getattr(tokenizer, name)):
                raise ValueError(
                    f"Image model and tokenizer do not belong together: {name} is {speaks} there and {knows} here."
                )
        check_tta(average, tokenizer)
        self.tokenizer = tokenizer.eval().to(device)
        model = model.eval().to(device, memory_format=torch.channels_last)
        self.model = optimize_for_inference(model, precision, compile)
        self.crop, self.decoding, self.average = crop, decoding, average
        self.device = torch.device(device)
        self.faces = tokenizer.faces.cpu().numpy().astype(np.int32)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        decoding: str | None = None,
        average: str | None = None,
        precision: str = "fp32",
        compile: bool = False,
    ) -> "Predictor":
        """Read `tokenizer.safetensors` and `cvqmae.safetensors` of a folder.

        Args:
            decoding, average: None leaves them to the weights.

        Raises:
            FileNotFoundError: if one is missing.
            ValueError: if one is damaged or they do not fit; names the file and what differs.
        """
        folder = Path(folder)
        tokenizer = MeshVQVAE.load(folder / TOKENIZER_FILE)
        model, config = load_cvqmae(folder / MODEL_FILE)
        try:
            decoding = decoding or config.get("decode", "argmax")
            average = average or stored_tta(config)
            return cls(tokenizer, model, Crop(**config["crop"]), device, decoding, average, precision, compile)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The weights in {folder} cannot be used: {error}") from error

    @classmethod
    def of_experiment(
        cls,
        tokenizer: Callable[..., MeshVQVAE],
        tokenizer_weights: str | Path,
        body: "BodyModel",
        model: CVQMAE,
        weights: str | Path,
        crop: Mapping,
        device: str | torch.device = "cpu",
        decoding: str = "argmax",
        average: str = "none",
        precision: str = "fp32",
        compile: bool = False,
    ) -> "Predictor":
        """A model that a config has built, with released weights (or ours).

        Args:
            tokenizer: builds one for a body (`mega.tokenizer.build_tokenizer`).
            crop: size, margin and patch; mean and std are the backbone's.

        Raises as `load`.
        """
        spoken = load_tokenizer(tokenizer_weights, partial(tokenizer, body=body))
        normalisation = {"mean": model.backbone.mean, "std": model.backbone.std}
        model = load_into(model, weights)
        return cls(spoken, model, Crop(**crop, **normalisation), device, decoding, average, precision, compile)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, sampling: Sampling | None = None, focal: float | None = None
    ) -> People:
        """People in the boxes (P, 4) px of a picture (h, w, 3) uint8."""
        return self.decode(self.estimate(image, boxes, sampling), image.shape[1::-1], focal)

    @torch.inference_mode()
    def estimate(self, image: np.ndarray, boxes: np.ndarray, sampling: Sampling | None = None) -> Estimate:
        """Mesh, rotation and camera of each box; with `sampling` also tokens drawn at random.

        Each person's draws start from the seed anew, so they do not depend on who else is in the picture.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        if not len(boxes):
            return self._nobody(sampling)
        crops = self.crops(image, boxes)
        likeliest = predict_mesh(self.model, self.tokenizer, crops, self.decoding, self.average)
        estimate = Estimate(boxes, likeliest.tokens, likeliest.canonical, likeliest.rotation, likeliest.cam)
        if sampling is None:
            return estimate
        drawn = [self._draw(likeliest.features[p : p + 1], sampling) for p in range(len(boxes))]
        return replace(estimate, drawn=torch.cat(drawn))

    @torch.inference_mode()
    def decode(self, estimate: Estimate, size: tuple[int, int], focal: float | None = None) -> People:
        """Meshes in the camera of the full picture.

        Args:
            size: (width, height) of the picture, px.
            focal: px; None assumes the published 1000 px on a crop of 224 px, scaled to the picture.
        """
        image_size = torch.tensor(size, dtype=torch.float32)
        focal = float(default_focal(image_size)) if focal is None else float(focal)
        squares = [square_box(box, self.crop.margin) for box in estimate.boxes]
        squares = torch.from_numpy(np.array(squares, np.float32).reshape(-1, 4))
        translation = crop_camera_to_full(estimate.cam.cpu(), squares, image_size, focal).to(self.device)

        vertices = self._place(estimate.canonical, estimate.rotation, translation)
        keypoints3d = self.tokenizer.keypoint_regressor @ vertices  # (P, 23, 3)
        principal_point = image_size / 2
        keypoints2d = project_perspective(keypoints3d.cpu(), focal, principal_point)
        samples = uncertainty = None
        if estimate.drawn is not None:
            canonical = self.tokenizer.decode_codes(self.tokenizer.vq_vae.lookup(estimate.drawn))  # (P, Q, V, 3)
            samples = self._place(canonical, estimate.rotation[:, None], translation[:, None])
            uncertainty = spread(samples).cpu().numpy()
            samples = samples.cpu().numpy()
        return People(
            vertices=vertices.cpu().numpy(),
            faces=self.faces,
            boxes=estimate.boxes.astype(np.float32),
            tokens=estimate.tokens.cpu().numpy(),
            keypoints3d=keypoints3d.cpu().numpy(),
            keypoints2d=keypoints2d.numpy(),
            focal=focal,
            principal_point=principal_point.numpy(),
            samples=samples,
            uncertainty=uncertainty,
        )

    def tighten(self, image: np.ndarray, boxes: np.ndarray, passes: int = 1) -> np.ndarray:
        """Boxes (P, 4) drawn tight around what is predicted in rough ones, `passes` times over.

        A tight box may reach over the picture's edge, where the body goes on, as in training.
        """
        height, width = image.shape[:2]
        for _ in range(passes):
            people = self(image, boxes)
            focal, centre = people.focal, torch.from_numpy(people.principal_point)
            points = project_perspective(torch.from_numpy(people.vertices), focal, centre).numpy()  # (P, V, 2)
            tight = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1).astype(np.float64)
            seen = tight.clip(0, [width, height, width, height])
            inside = (seen[:, 2:] - seen[:, :2]).min(axis=1) >= 0.05 * min(width, height)
            sensible = inside & ((tight[:, 2:] - tight[:, :2]).max(axis=1) <= 2 * max(width, height))
            boxes = np.where(sensible[:, None], tight, boxes)  # a wild first guess must not lead away from the picture
        return boxes

    def crops(self, image: np.ndarray, boxes: np.ndarray) -> Tensor:
        """(P, 3, size, size) float32, RGB in [0, 255], channels last."""
        crops = np.stack([square_crop(image, box, self.crop.size, self.crop.margin) for box in boxes])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).to(self.device)

    def _draw(self, features: Tensor, sampling: Sampling) -> Tensor:
        """Tokens (1, Q, N) of one person's features (1, C, h, w)."""
        generator = torch.Generator(self.device).manual_seed(sampling.seed)
        return sample(self.model, features, sampling.samples, sampling.steps, sampling.temperature, generator)

    def _nobody(self, sampling: Sampling | None) -> Estimate:
        tokens = torch.zeros(0, self.tokenizer.n_tokens, dtype=torch.int64, device=self.device)
        rotation, cam = torch.zeros(0, 3, 3, device=self.device), torch.zeros(0, 3, device=self.device)
        drawn = None if sampling is None else tokens[:, None].expand(-1, sampling.samples, -1)
        canonical = torch.zeros(0, self.tokenizer.n_vertices, 3, device=self.device)
        return Estimate(np.zeros((0, 4)), tokens, canonical, rotation, cam, drawn)

    @staticmethod
    def _place(canonical: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
        """Canonical vertices (..., V, 3) turned by (..., 3, 3) and moved by (..., 3)."""
        return canonical @ rotation.transpose(-1, -2) + translation[..., None, :]


def spread(samples: Tensor) -> Tensor:
    """Standard deviation (P, V) of where the samples (P, Q, V, 3) put each vertex: root of the mean squared distance
    to their mean, in their unit."""
    offsets = samples - samples.mean(dim=1, keepdim=True)
    return offsets.square().sum(dim=-1).mean(dim=1).sqrt()
