"""Random bodies out of the masked transformer's prior, on disk. What `generate.py` runs."""

from __future__ import annotations

import inspect
import io
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from mega.geometry import sample_spread
from mega.inference.experiment import build_body
from mega.inference.export import MESH_FORMATS, encode_mesh, encode_png, make_output_folder, write_together
from mega.inference.images import InputError
from mega.inference.options import check_choice, check_temperature, check_whole_number, read_device
from mega.models import VQMAE, load_into, load_tokenizer, load_vqmae, sample_unconditional
from mega.models.samplers import RULES
from mega.rendering import draw_body, panel
from mega.rendering.shading import palette_colors
from mesh_vq_vae import MeshVQVAE

_COLUMNS = 8
_DECODED_AT_ONCE = 16
_CANONICAL_TO_CAMERA = np.array([1, -1, -1], np.float32)


def run_generation(config: DictConfig) -> int:
    """Draw bodies as `configs/generate.yaml` says; the exit status."""
    try:
        output, device = _checked(config)
        tokenizer, model = _load(config, device)
    except (InputError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    generator = torch.Generator(device).manual_seed(config.seed)
    tokens = sample_unconditional(model, config.n, config.steps, config.temperature, generator, config.rule)
    vertices = torch.cat([tokenizer.decode(part) for part in tokens.split(_DECODED_AT_ONCE)]).cpu()
    faces = tokenizer.faces.cpu().numpy().astype(np.int32)
    try:
        files = _files(vertices.numpy(), faces, tokens.cpu().numpy(), config.export)
        write_together(output, "bodies", files)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    apart, _ = sample_spread(vertices)
    print(f"{config.n} bodies in {output}/" + (f", {apart:.0f} mm apart on average" if config.n > 1 else ""))
    return 0


def _checked(config: DictConfig) -> tuple[Path, torch.device]:
    for name, least in (("n", 1), ("steps", 1), ("seed", 0)):
        check_whole_number(config, name, least)
    check_temperature(config.temperature)
    check_choice(config, "export", MESH_FORMATS)
    check_choice(config, "rule", RULES)
    return make_output_folder(config.output), read_device(config.device)


def _load(config: DictConfig, device: torch.device) -> tuple[MeshVQVAE, VQMAE]:
    """Files of ours say themselves what they are; an experiment's are as its config describes them."""
    if "model" not in config:
        model, _ = load_vqmae(config.pretrained)
        tokenizer = MeshVQVAE.load(config.tokenizer_weights)
    else:
        build = partial(instantiate(config.tokenizer), body=build_body(config))
        tokenizer = load_tokenizer(config.tokenizer_weights, build)
        # The image model's sizes are the prior's.
        sizes = {name: config.model[name] for name in inspect.signature(VQMAE).parameters if name in config.model}
        model = load_into(VQMAE(**sizes), config.pretrained)
    ours, theirs = ((m.n_tokens, m.codebook_size) for m in (model, tokenizer))
    if ours != theirs:
        raise ValueError(
            f"{config.pretrained} speaks {ours[0]} tokens of {ours[1]} codes, but those of "
            f"{config.tokenizer_weights} are {theirs[0]} of {theirs[1]}: they are not a pair."
        )
    return tokenizer.eval().to(device), model.eval().to(device)


def _files(vertices: np.ndarray, faces: np.ndarray, tokens: np.ndarray, mesh_format: str) -> dict[str, bytes]:
    """{file name: content}: a mesh each, a sheet with all, the arrays."""
    color = palette_colors(1)[0]
    digits = max(2, len(str(len(vertices) - 1)))
    files = {
        f"body_{i:0{digits}}.{mesh_format}": encode_mesh(body * _CANONICAL_TO_CAMERA, faces, color, mesh_format)
        for i, body in enumerate(vertices)
    }
    drawn = [(draw_body(body, faces), "") for body in vertices]
    files["bodies.png"] = encode_png(panel([drawn[i : i + _COLUMNS] for i in range(0, len(drawn), _COLUMNS)]))
    buffer = io.BytesIO()
    np.savez(buffer, vertices=vertices.astype(np.float32), faces=faces, tokens=tokens)
    return files | {"bodies.npz": buffer.getvalue()}
