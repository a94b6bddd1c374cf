"""Trained models on disk, and the one way to load them.

    predictor = mega.load("anny_lite")                  the shipped weights
    predictor = mega.load("mega_hrnet")                 released weights, where the published instructions put them
    predictor = mega.load("checkpoint/mega_hrnet")      a folder that tools/convert_weights.py or a training has written

Our files are safetensors with their configuration as metadata. That of a CVQMAE (an image model) is

    {"model": {"n_tokens", "codebook_size", "dim", "encoder_depth", …, "cond_dim"},     arguments of CVQMAE
     "backbone": "blazepose",                                                           a name in BACKBONES
     "backbone_args": {},                                                               its arguments; optional
     "crop": {"size": px, "margin": …, "mean": [r, g, b], "std": [r, g, b],             how crops were prepared;
              "patch": bool},                                                           false if left out
     "decode": "argmax" | "soft",                                                       of predictions; optional
     "tta": "none" | "flip" | "shift" | "flip_shift"}                                   of predictions; optional

and that of a VQMAE (a prior) only has "model". Further entries are kept and returned.

Released files (`torch.save`) hold tensors only: the sizes of a model are read from their shapes, the rest is in
PUBLISHED_SETUPS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from mega.backbones import BlazePose, EfficientNetLite0, HRNetW48, ResNet50, ViT
from mega.external_files import CONFIGS, SHIPPED_WEIGHTS, locate, missing, require
from mega.model import CVQMAE, IMAGE_KEYS, VQMAE
from mega.predictor import Crop, Predictor, check_pair
from mega.sampling import DECODINGS
from mega.test_time_augmentation import TTA_CHOICES, stored_tta
from mega_common.device import choose_precision, read_device
from mega_common.weights_io import (
    is_released,
    load_strictly,
    read_released,
    read_weights,
    to_dtype,
    without_surplus,
    write_weights,
)
from mesh_vq_vae import MeshVQVAE, build_tokenizer

BACKBONES = {
    "blazepose": BlazePose,
    "efficientnet_lite0": partial(EfficientNetLite0, pretrained=False),
    "hrnet_w48": HRNetW48,
    "resnet50": ResNet50,
    "vit_h": ViT,
}
TOKENIZER_FILE, MODEL_FILE, PRIOR_FILE = "tokenizer.safetensors", "cvqmae.safetensors", "vqmae.safetensors"
RELEASED_TOKENIZER, RELEASED_PRIOR = "checkpoint/MESH_VQVAE/mesh_vqvae_54", "checkpoint/VQMAE/mega_pretrained"


@dataclass(frozen=True)
class PublishedSetup:
    """What the released file of an image model does not say."""

    path: str  # where the file is, relative to the project's root
    backbone: str  # a name in BACKBONES
    key: str  # the beginning of names of tensors that only this backbone has
    crop: Crop  # how crops are prepared
    cam_range: float = 2.0  # see `ImageTransformerConfig`


_HEADS = 4  # of all released transformers
_COLUMNS_CUT = 32  # px that ViTPose cuts off a crop at the left and at the right
PUBLISHED_SETUPS = {
    "mega_hrnet": PublishedSetup(
        "checkpoint/CVQMAE/mega_hrnet", "hrnet_w48", "backbone.downsample_stage_1.", Crop(224, 1.0)
    ),
    "mega_resnet": PublishedSetup("checkpoint/CVQMAE/mega_resnet", "resnet50", "backbone.0.", Crop(224, 1.0)),
    # Its cam_range is inferred from the published code, whose 2D targets for the ViT are p/256 - 0.5. We had no
    # released file to confirm it: if meshes come out twice as large as the people in the pictures, convert the file
    # with tools/convert_weights.py cam_range=2.0.
    "mega_vit": PublishedSetup(
        "checkpoint/CVQMAE/mega_vit", "vit_h", "backbone.pos_embed", Crop(256, 1.0, patch=True), cam_range=1.0
    ),
}


def load(
    name_or_path: str | Path = "anny_lite",
    device: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    decode: str | None = None,
    tta: str | None = None,
    *,
    tokenizer: str | Path | None = None,
    root: str | Path = ".",
) -> Predictor:
    """Load an image model with its tokenizer.

    Args:
        name_or_path: "anny_lite", a name in PUBLISHED_SETUPS, a folder with `tokenizer.safetensors` and
            `cvqmae.safetensors`, or the file of an image model, ours or released.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", see `read_device`
        precision: "fp32", "bf16", or "auto" for bf16 on devices that have it.
        compile: use torch.compile; takes minutes before the first prediction.
        decode, tta: see `Predictor`; None leaves them to the weights.
        tokenizer: another file of a tokenizer. By default it is next to the image model, or the released one.
        root: folder with `checkpoint/` and `body_models/` for released files.

    Raises:
        FileNotFoundError: if a file is missing; says where to get it.
        ValueError: if a file is damaged or does not fit, or an option is wrong.
    """
    model_file, tokenizer_file = find_weights(name_or_path, root)
    device = read_device(device)
    model, config = load_cvqmae(model_file)
    precision = choose_precision(precision, device)
    decode = decode or config.get("decode", "argmax")
    tta = tta or stored_tta(config)
    tokenizer = load_tokenizer(tokenizer or tokenizer_file, root=root)
    try:
        return Predictor(tokenizer, model, _read_crop(config, model), device, precision, compile, decode, tta)
    except ValueError as error:
        raise ValueError(f"The weights {model_file} cannot be used: {error}") from error


def find_weights(name_or_path: str | Path, root: str | Path = ".") -> tuple[Path, Path]:
    """The files of (image model, tokenizer) that `load` reads."""
    name, released_tokenizer = str(name_or_path), Path(root) / RELEASED_TOKENIZER
    if name in PUBLISHED_SETUPS:
        return locate(Path(root) / PUBLISHED_SETUPS[name].path), released_tokenizer
    path = SHIPPED_WEIGHTS if name == "anny_lite" else locate(name)
    if path.is_dir():
        return path / MODEL_FILE, path / TOKENIZER_FILE
    if path.is_file():
        own_tokenizer = path.with_name(TOKENIZER_FILE)
        return path, own_tokenizer if own_tokenizer.is_file() else released_tokenizer
    raise FileNotFoundError(
        f"{missing(path)} Weights are a folder with {TOKENIZER_FILE} and {MODEL_FILE}, the file of an image model, or "
        f"one of the names anny_lite, {', '.join(PUBLISHED_SETUPS)}."
    )


def load_prior(path: str | Path, tokenizer_path: str | Path, device: str = "auto") -> tuple[VQMAE, MeshVQVAE]:
    """Load a prior over bodies and its tokenizer from their files, ours or released. Raises as `load`."""
    device = read_device(device)
    model, _ = load_vqmae(path)
    tokenizer = load_tokenizer(tokenizer_path)
    try:
        check_pair(model, tokenizer)
    except ValueError as error:
        raise ValueError(f"{path} and {tokenizer_path}: {error}") from error
    return model.to(device), tokenizer.to(device)


def load_vqmae(path: str | Path) -> tuple[VQMAE, dict]:
    """Read a prior, from a file of ours or a released one: (the model, its config), as `load_cvqmae`."""
    return _load(path, VQMAE)


def load_cvqmae(path: str | Path, cam_range: float | None = None) -> tuple[CVQMAE, dict]:
    """Read an image model, from a file of ours or a released one.

    Args:
        cam_range: replaces that of a released file's setup.

    Returns:
        The model in eval mode, float32, on the CPU; its config as in the module's docstring.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no CVQMAE, or its weights do not fit its config; names what differs.
    """
    return _load(path, CVQMAE, cam_range)


def backbone_name(backbone: nn.Module) -> str:
    """The name in BACKBONES under which a file stores this backbone."""
    return next(name for name, build in BACKBONES.items() if getattr(build, "func", build) is type(backbone))


def save_model(model: VQMAE | CVQMAE, path: str | Path, config: dict, dtype: torch.dtype = torch.float32) -> None:
    """Write weights and config to one file, whole or not at all.

    Args:
        config: see the module's docstring.
        dtype: type of the floating-point weights, e.g. torch.float16 for half the size.
    """
    write_weights(path, to_dtype(model.state_dict(), dtype), type(model).__name__, config)


def load_into(model: VQMAE | CVQMAE, path: str | Path) -> VQMAE | CVQMAE:
    """Load the weights of a file of ours or a released one into a model that a config has built; in eval mode.

    Strict, except for surplus tensors of a released file (`without_surplus`). Raises as `load_cvqmae`.
    """
    load_strictly(model, read_state(path, type(model).__name__, model.state_dict()), path)
    return model.eval()


def read_state(path: str | Path, format: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a released file, or of one of ours that holds a `format` (VQMAE, CVQMAE).

    Surplus tensors of a released file, which the model's state dict `own` has no place for, are left out, unless they
    show that the file is an image model in place of a prior.
    """
    require(path)
    if not is_released(path):
        return read_weights(path, format)[0]
    return without_surplus(own, read_released(path), path, IMAGE_KEYS if format == "VQMAE" else ())


def _read_crop(config: dict, model: CVQMAE) -> Crop:
    """The crops that a file's config describes. Raises ValueError if it does not, or not for the model's backbone."""
    described = dict(config.get("crop", {}))
    for name in ("mean", "std"):
        if name in described and tuple(described.pop(name)) != tuple(getattr(model.backbone, name)):
            raise ValueError(f"its config gives another {name} of the pictures than its backbone's.")
    try:
        return Crop(**described)
    except TypeError as error:
        raise ValueError(f"its config does not describe the crops: {error}.") from error


def _load(path: str | Path, kind: type, cam_range: float | None = None) -> tuple[VQMAE | CVQMAE, dict]:
    """Build what a file describes, a `kind` (VQMAE or CVQMAE), and load its weights."""
    path = locate(path)
    require(path)
    released = is_released(path)
    if released:
        state = read_released(path)
        config = _describe_released(state, kind.__name__, path, cam_range)
    else:
        state, config = read_weights(path, kind.__name__)
    try:
        if kind is CVQMAE:
            _check_config(config)
            model = CVQMAE(BACKBONES[config["backbone"]](**config.get("backbone_args", {})), **config["model"])
        else:
            model = VQMAE(**config["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The config in {path} does not describe a {kind.__name__}: {error}.") from error
    if released:
        state = without_surplus(model.state_dict(), state, path, IMAGE_KEYS if kind is VQMAE else ())
    load_strictly(model, state, path)
    return model.eval(), config


def _describe_released(state: dict[str, Tensor], kind: str, path: Path, cam_range: float | None) -> dict:
    """The config of a released model: sizes from the shapes of its tensors, the rest from PUBLISHED_SETUPS."""
    try:
        codebook_size, dim = state["encoder.proj.weight"].shape
        model = {
            "n_tokens": len(state["encoder.pos_embedding"]),
            "codebook_size": codebook_size,
            "dim": dim,
            "encoder_depth": _count_blocks(state, "encoder.transformer."),
            "encoder_heads": _HEADS,
            "decoder_depth": _count_blocks(state, "decoder.transformer."),
            "decoder_heads": _HEADS,
            "learned_positions": True,
        }
        if kind == "VQMAE":
            return {"model": model}
        setup = next((s for s in PUBLISHED_SETUPS.values() if any(key.startswith(s.key) for key in state)), None)
        if setup is None:
            raise KeyError("a published backbone")
        model["cond_dim"] = state["decoder.cond_emb.weight"].shape[1]
        model["cam_range"] = setup.cam_range if cam_range is None else cam_range
    except KeyError as error:
        raise ValueError(f"The weights in {path} do not fit this {kind}: {error.args[0]} is missing.") from error
    arguments = {}
    if setup.backbone == "vit_h":
        depth = _count_blocks(state, "backbone.blocks.")
        arguments = {"dim": model["cond_dim"], "depth": depth, "columns_cut": _COLUMNS_CUT}
    backbone = BACKBONES[setup.backbone]
    crop = asdict(setup.crop) | {"mean": backbone.mean, "std": backbone.std}
    return {"model": model, "backbone": setup.backbone, "backbone_args": arguments, "crop": crop, "decode": "argmax"}


def _count_blocks(state: dict[str, Tensor], prefix: str) -> int:
    """How many blocks a stack has: one more than the highest number after `prefix`."""
    return 1 + max((int(k.removeprefix(prefix).split(".")[0]) for k in state if k.startswith(prefix)), default=-1)


def _check_config(config: dict) -> None:
    """Raise ValueError if a file asks for predictions of an unknown kind."""
    choices = {"decode": (config.get("decode", "argmax"), DECODINGS), "tta": (stored_tta(config), TTA_CHOICES)}
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name}={value} is not one of {', '.join(known)}")
    if config["backbone"] == "vit_h" and "cam_range" not in config["model"]:
        raise ValueError(
            "an earlier version wrote it, which cropped wider and knew one unit of the camera only; make it anew with "
            "tools/convert_weights.py or train_mega.py"
        )


def load_tokenizer(path: str | Path, build: Callable[[], MeshVQVAE] | None = None, root: str | Path = ".") -> MeshVQVAE:
    """Read a tokenizer, from a file of ours or a released one, in eval mode.

    Args:
        build: makes the untrained tokenizer for a released file; None makes MEGA's, of 54 tokens.
        root: folder with the `body_models` that MEGA's is built from.

    Raises FileNotFoundError, or ValueError that says what is wrong with the file.
    """
    path = locate(path)
    require(path)
    if not is_released(path):
        return MeshVQVAE.load(path)
    if build is None:
        from mega.bodies import SMPLHBody

        config = OmegaConf.to_container(OmegaConf.load(CONFIGS / "tokenizer" / "smpl_54.yaml"))
        options = {name: value for name, value in config.items() if not name.startswith("_")}
        build = partial(build_tokenizer, SMPLHBody(locate(Path(root) / "body_models")), **options)
    return build().load_released(path).eval()
