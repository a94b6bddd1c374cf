"""What is evaluated: an image model and its tokenizer, from our weights folder or as an experiment describes them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mega.launch import build
from mega.models import CVQMAE, check_average, load_into, load_tokenizer, speed_up
from mega.models.checkpoint import load_cvqmae
from mega.precision import choose_precision
from mega.user_files import require
from mesh_vq_vae import MeshVQVAE

if TYPE_CHECKING:
    from mega.bodies import BodyModel

_TOKENIZER_FILE = "tokenizer.safetensors"
_MODEL_FILE = "cvqmae.safetensors"
_DEVICES = ("auto", "cpu", "cuda")
# What weights ask for that do not say it.
_PUBLISHED = {"decode": "argmax", "average": "none"}


@dataclass
class Subject:
    """An image model, ready to predict.

    Attributes:
        model, tokenizer: in eval mode, on the device.
        crop: how its pictures are prepared: {"size": px, "margin", "mean": RGB, "std": RGB, of pixels in [0, 1],
            "patch": see `PublishedImages`; false if left out}.
        decode, average: of deterministic predictions, what the config says or else the weights; see
            `mega.models.predict_mesh`.
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
        model = speed_up(model, precision, config.compile)
        decode, average = config.decode or asked["decode"], config.average or asked["average"]
        check_average(average, tokenizer)
        return cls(model, tokenizer.eval().to(device), crop, decode, average, device, precision)

    def normalise(self, images: Tensor) -> Tensor:
        """Crops (B, 3, S, S), uint8 or float in [0, 255] -> as the backbone wants them, on the device."""
        mean, std = (torch.tensor(self.crop[name], device=self.device).view(3, 1, 1) for name in ("mean", "std"))
        normalised = (images.to(self.device).float() / 255 - mean) / std
        return normalised.contiguous(memory_format=torch.channels_last)


def _of_folder(folder: Path) -> tuple[CVQMAE, MeshVQVAE, dict, dict[str, str]]:
    """Model, tokenizer, crop, and what the weights ask for: {"decode", "average"}."""
    for name in (_TOKENIZER_FILE, _MODEL_FILE):
        require(folder / name)
    tokenizer = MeshVQVAE.load(folder / _TOKENIZER_FILE)
    model, config = load_cvqmae(folder / _MODEL_FILE)
    crop = config.get("crop", {})
    if lacking := [name for name in ("size", "margin", "mean", "std") if name not in crop]:
        raise ValueError(f"{folder / _MODEL_FILE} does not say how its pictures are cropped: it lacks {lacking}.")
    return model, tokenizer, crop, {name: config.get(name, published) for name, published in _PUBLISHED.items()}


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
