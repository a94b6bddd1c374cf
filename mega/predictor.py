"""From a picture and boxes to people: crop, backbone, masked transformer, tokenizer, camera.

predictor = mega.load("anny_lite")
people = predictor(image, boxes)
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mega.geometry import (
    crop_camera_to_full,
    default_focal,
    project_perspective,
    square_box,
    square_crop,
    standard_deviation,
)
from mega.model import CVQMAE
from mega.optimize import optimize_for_inference
from mega.photos import FILM_WIDTH, InputError, Picture, power_of_two
from mega.sampling import Prediction, sample
from mega.test_time_augmentation import check_tta, predict_mesh
from mesh_vq_vae import MeshVQVAE

# Larger squares are cut from a reduced picture: the crop is nearly the same, and its time and memory are bounded.
_LARGEST_SQUARE = 8  # sides of the crop
_NEAREST, _FARTHEST = 0.1, 1e5  # m; single precision keeps centimetres up to here


@dataclass(frozen=True)
class Crop:
    """The square crops that an image model was trained on."""

    size: int  # px
    margin: float  # side of the square, in longer sides of the box
    patch: bool = False  # how the boxes of published annotations are cut, see `SMPLImages`


@dataclass(frozen=True)
class Sampling:
    """How many meshes are drawn for each person, and how (`mega.sampling.sample`)."""

    samples: int = 25
    steps: int = 5
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class People:
    """P people in the camera frame of the full picture: x right, y down, z forward, metres."""

    vertices: np.ndarray  # (P, V, 3) float32
    faces: np.ndarray  # (F, 3) int32
    boxes: np.ndarray  # (P, 4) float32, px
    tokens: np.ndarray  # (P, N) int64
    keypoints3d: np.ndarray  # (P, J, 3) float32
    keypoints2d: np.ndarray  # (P, J, 2) float32, px
    focal: float  # px
    principal_point: np.ndarray  # (2,) float32, px
    samples: np.ndarray | None = None  # (P, Q, V, 3) float32
    uncertainty: np.ndarray | None = None  # (P, V) float32, metres

    def __len__(self) -> int:
        return len(self.vertices)


class Predictor:
    """An image model with its tokenizer, ready to predict. `mega.load` makes one.

    Args:
        tokenizer, model: with trained weights. The model is changed for good (`optimize_for_inference`).
        crop: the crops that the model was trained on.
        precision, compile: how the image model computes; the tokenizer always decodes in float32.
        decode: "argmax" or "soft": the mesh of the likeliest codes, or of the mean codes.
        tta: test-time augmentation, see `mega.test_time_augmentation.predict_mesh`. Samples are drawn from the crop
            itself, and take rotation and camera from the averaged prediction.

    Raises ValueError if model and tokenizer do not belong together, or an option is wrong.
    """

    def __init__(
        self,
        tokenizer: MeshVQVAE,
        model: CVQMAE,
        crop: Crop,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        compile: bool = False,
        decode: str = "argmax",
        tta: str = "none",
    ):
        for name in ("faces", "keypoint_regressor"):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"The tokenizer was saved without its {name.replace('_', ' ')}.")
        check_pair(model, tokenizer)
        check_tta(tta, tokenizer)
        self.device = torch.device(device)
        self.tokenizer = tokenizer.eval().to(device)
        model = model.eval().to(device, memory_format=torch.channels_last)
        self.model = optimize_for_inference(model, precision, compile)
        self.crop, self.precision, self.decode, self.tta = crop, precision, decode, tta
        self.faces = tokenizer.faces.cpu().numpy().astype(np.int32)

    @torch.inference_mode()
    def __call__(
        self,
        image: np.ndarray | Picture,
        boxes: np.ndarray,
        sampling: Sampling | None = None,
        focal: float | None = None,
    ) -> People:
        """Predict the people in a picture.

        Args:
            image: (h, w, 3) uint8 RGB, or a file from `mega.photos.open_picture`.
            boxes: (P, 4) = (x0, y0, x1, y1) px.
            sampling: draw samples as well. The draws of each person start from the seed, so they do not depend on who
                else is in the picture.
            focal: px; None assumes the published 1000 px on a crop of 224 px, scaled to the picture.

        Raises InputError if the given focal length would put people behind or inside the camera, or kilometres away.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        prediction = self.predict(self.crops(image, boxes))
        image_size = torch.tensor(image.shape[1::-1], dtype=torch.float32)
        given = focal is not None
        focal = float(focal) if given else float(default_focal(image_size))
        squares = np.array([square_box(box, self.crop.margin) for box in boxes], np.float32).reshape(-1, 4)
        translation = crop_camera_to_full(prediction.cam.cpu(), torch.from_numpy(squares), image_size, focal)
        translation = translation.to(self.device)

        vertices = prediction.mesh + translation[:, None]  # (P, V, 3)
        keypoints3d = self.tokenizer.keypoint_regressor @ vertices  # (P, J, 3)
        keypoints2d = project_perspective(keypoints3d.cpu(), focal, image_size / 2)
        samples = uncertainty = None
        if sampling is not None:
            tokens = prediction.tokens.new_zeros(len(boxes), sampling.samples, self.model.n_tokens)
            for p in range(len(boxes)):
                generator = torch.Generator(self.device).manual_seed(sampling.seed)
                options = (sampling.samples, sampling.steps, sampling.temperature, generator)
                tokens[p] = sample(self.model, prediction.features[p : p + 1], *options)[0]
            canonical = self.tokenizer.decode_codes(self.tokenizer.vq_vae.lookup(tokens))  # (P, Q, V, 3)
            samples = canonical @ prediction.rotation[:, None].mT + translation[:, None, None]
            uncertainty = standard_deviation(samples).cpu().numpy()
            samples = samples.cpu().numpy()
        vertices = vertices.cpu().numpy()
        if given and len(boxes):
            bodies = vertices if samples is None else np.concatenate([vertices[:, None], samples], axis=1)
            check_focal(focal, bodies[..., 2].reshape(len(boxes), -1), translation[:, 2].cpu().numpy(), image.shape)
        return People(
            vertices=vertices,
            faces=self.faces,
            boxes=boxes.astype(np.float32),
            tokens=prediction.tokens.cpu().numpy(),
            keypoints3d=keypoints3d.cpu().numpy(),
            keypoints2d=keypoints2d.numpy(),
            focal=focal,
            principal_point=(image_size / 2).numpy(),
            samples=samples,
            uncertainty=uncertainty,
        )

    @torch.inference_mode()
    def predict(self, crops: Tensor) -> Prediction:
        """The deterministic prediction for crops (B, 3, S, S) RGB in [0, 255]."""
        return predict_mesh(self.model, self.tokenizer, crops.to(self.device), self.decode, self.tta)

    def crops(self, image: np.ndarray | Picture, boxes: np.ndarray) -> Tensor:
        """Square crops (P, 3, S, S) float32 RGB in [0, 255] of the boxes (P, 4) in a picture (h, w, 3)."""
        picture = Picture.of(image)
        crops = np.empty((len(boxes), self.crop.size, self.crop.size, 3), np.float32)
        for p, box in enumerate(boxes):
            left, _, right, _ = square_box(box, self.crop.margin)
            factor = 2 * (right - left) / (_LARGEST_SQUARE * self.crop.size)
            level = picture.reduced(power_of_two(min(factor, *picture.shape[:2])))
            crops[p] = square_crop(level.pixels, level.boxes(box), self.crop.size, self.crop.margin)
        return torch.from_numpy(crops).permute(0, 3, 1, 2)

    def tighten(self, image: np.ndarray | Picture, boxes: np.ndarray, passes: int = 1) -> np.ndarray:
        """Replace rough boxes (P, 4) by boxes tight around the meshes predicted in them, `passes` times.

        A tight box may reach beyond the edge of the picture where the body does, as in training.
        """
        image = Picture.of(image)
        height, width = image.shape[:2]
        for _ in range(passes):
            people = self(image, boxes)
            centre = torch.from_numpy(people.principal_point)
            points = project_perspective(torch.from_numpy(people.vertices), people.focal, centre).numpy()  # (P, V, 2)
            tight = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1).astype(np.float64)
            inside = tight.clip(0, [width, height, width, height])
            visible = (inside[:, 2:] - inside[:, :2]).min(axis=1) >= 0.05 * min(width, height)
            plausible = visible & ((tight[:, 2:] - tight[:, :2]).max(axis=1) <= 2 * max(width, height))
            boxes = np.where(plausible[:, None], tight, boxes)  # a wild prediction keeps the box that it came from
        return boxes


def check_focal(focal: float, depths: np.ndarray, origins: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise InputError if a focal length px cannot be that of a picture of `shape` (h, w, 3) px.

    Args:
        depths: (P, V) m, of all vertices.
        origins: (P,) m, depth of the bodies' origins. They are proportional to the focal length.
    """
    if depths.min() >= _NEAREST and depths.max() <= _FARTHEST:
        return
    height, width = shape[:2]
    longer = max(height, width)
    # The depth of a vertex is focal / scale + its distance to the origin, which does not depend on the focal length.
    required = ((_NEAREST + origins - depths.min(axis=1)) * focal / origins).max()
    low, phone, high = (mm / FILM_WIDTH * longer for mm in (13, 26, 200))
    low = max(low, required)
    where = "behind or inside the camera" if depths.min() < _NEAREST else f"more than {_FARTHEST:.0f} m away"
    raise InputError(
        f"A focal length of {focal:.4g} px puts people {where}: give focal= a value from {math.ceil(low)} to "
        f"{math.floor(max(high, 2 * low))} (px of this picture of {width}×{height}; the main camera of a phone has "
        f"about {phone:.0f}), or focal=default."
    )


def check_pair(model: torch.nn.Module, tokenizer: MeshVQVAE) -> None:
    """Raise ValueError if a masked transformer was not trained on the tokens of a tokenizer."""
    for name in ("n_tokens", "codebook_size"):
        if (expected := getattr(model, name)) != (found := getattr(tokenizer, name)):
            raise ValueError(
                f"The {type(model).__name__} and the tokenizer do not belong together: "
                f"{name} is {expected} in the model and {found} in the tokenizer."
            )
