"""Random bodies and completions of bodies out of the masked transformer's prior, on disk. What `generate.py` runs."""

from __future__ import annotations

import inspect
import io
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from mega.inference.bodies_file import read_body_tokens
from mega.inference.experiment import build_body
from mega.inference.export import MESH_FORMATS, encode_mesh, encode_png, make_output_folder, write_together
from mega.inference.images import InputError
from mega.inference.options import check_choice, check_temperature, check_whole_number, read_device
from mega.inference.parts import PARTS, token_parts, vertex_parts
from mega.inference.plausibility import figures_table, measure_bodies
from mega.models import VQMAE, load_into, load_tokenizer, load_vqmae, sample_unconditional
from mega.models.samplers import RULES
from mega.rendering import draw_side_view, panel
from mega.rendering.shading import palette_colors
from mesh_vq_vae import MeshVQVAE

_COLUMNS = 8
_DRAWN_HEIGHT = 256  # px
_DECODED_AT_ONCE = 16
_REFERENCE_BODIES = 256
_CANONICAL_TO_CAMERA = np.array([1, -1, -1], np.float32)


@dataclass
class _Partial:
    """A body of which some parts are given."""

    parts: list[str]
    tokens: Tensor  # (N,)
    hidden: Tensor  # (N,) bool, what is to be drawn


def run_generation(config: DictConfig) -> int:
    """Draw bodies as `configs/generate.yaml` says; the exit status."""
    try:
        output, device = _checked(config)
        tokenizer, model = _load(config, device)
        reference = None
        if config.reference is not None:
            reference = read_body_tokens(config.reference, tokenizer, _REFERENCE_BODIES).to(device)
        generator = torch.Generator(device).manual_seed(config.seed)
        given = _partial_body(config, tokenizer, model, generator) if config.given else None
    except (InputError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    tokens = _draw(config, model, generator, given)
    vertices = _decode(tokens, tokenizer)
    figures = {"drawn": measure_bodies(tokens, vertices, tokenizer, model)}
    if reference is not None:
        figures["reference"] = measure_bodies(reference, _decode(reference, tokenizer), tokenizer, model)
    try:
        write_together(output, "bodies", _files(tokens, vertices, tokenizer, given, figures, config.export))
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    what = f"{config.n} bodies" if given is None else f"{config.n} bodies with {', '.join(given.parts)} given"
    apart = figures["drawn"]["apart_mm"]
    print(f"{what} in {output}/" + ("" if apart is None else f", {apart:.0f} mm apart on average"))
    print(figures_table(figures))
    return 0


def _draw(config: DictConfig, model: VQMAE, generator: torch.Generator, given: _Partial | None = None) -> Tensor:
    """Tokens (n, N) as the config says."""
    with tqdm(total=config.steps, desc="drawing", unit="step", leave=False) as bar:
        return sample_unconditional(
            model,
            config.n,
            config.steps,
            config.temperature,
            generator,
            config.rule,
            watch=lambda *_: bar.update(),
            given=None if given is None else (given.tokens, given.hidden),
        )


def _decode(tokens: Tensor, tokenizer: MeshVQVAE) -> Tensor:
    """Tokens (P, N) -> vertices (P, V, 3)."""
    return torch.cat([tokenizer.decode(part) for part in tokens.split(_DECODED_AT_ONCE)])


def _checked(config: DictConfig) -> tuple[Path, torch.device]:
    for name, least in (("n", 1), ("steps", 1), ("seed", 0)):
        check_whole_number(config, name, least)
    check_temperature(config.temperature)
    check_choice(config, "export", MESH_FORMATS)
    check_choice(config, "rule", RULES)
    check_whole_number(config, "person", 0)
    _check_given(config)
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


def _check_given(config: DictConfig) -> None:
    """`given` must be some of the parts, not all; `source` makes sense with them only."""
    given = _given_parts(config)
    if unknown := [part for part in given if part not in PARTS]:
        raise InputError(
            f"given={', '.join(map(str, unknown))} is no part of the body; choose from {', '.join(PARTS)}."
        )
    if set(given) == set(PARTS):
        raise InputError("given names every part, so there is nothing to draw: leave one out.")
    if config.source is not None and not given:
        raise InputError("source needs to know which of its parts to keep, for example given=head.")


def _given_parts(config: DictConfig) -> list[str]:
    """One part may be given without brackets."""
    return [config.given] if isinstance(config.given, str) else list(config.given or [])


def _partial_body(config: DictConfig, tokenizer: MeshVQVAE, model: VQMAE, generator: torch.Generator) -> _Partial:
    """Body number `person` of the file `source`, or of those that are drawn when no part is given."""
    if config.source is None:
        bodies, where = _draw(config, model, generator), f"the n={config.n} bodies drawn at seed={config.seed}"
    else:
        bodies, where = read_body_tokens(config.source, tokenizer).to(tokenizer.template.device), str(config.source)
    if config.person >= len(bodies):
        raise InputError(f"person={config.person} is not there: {where} has {len(bodies)}, counted from 0.")
    parts, part_of_token = _given_parts(config), token_parts(tokenizer)
    kept = torch.isin(part_of_token, part_of_token.new_tensor([PARTS.index(part) for part in parts]))
    if not 0 < kept.sum() < len(kept):
        raise InputError(f"{int(kept.sum())} of the {len(kept)} tokens belong to {', '.join(parts)}: name other parts.")
    return _Partial(parts, bodies[config.person], ~kept)


def _files(
    tokens: Tensor,
    vertices: Tensor,
    tokenizer: MeshVQVAE,
    given: _Partial | None,
    figures: dict,
    mesh_format: str,
) -> dict[str, bytes]:
    """{file name: content}: a mesh each, a sheet with all, the figures, the arrays."""
    vertices = vertices.cpu().numpy()
    faces = tokenizer.faces.cpu().numpy().astype(np.int32)
    digits = max(2, len(str(len(vertices) - 1)))
    files = {
        f"body_{i:0{digits}}.{mesh_format}": encode_mesh(
            body * _CANONICAL_TO_CAMERA, faces, palette_colors(1)[0], mesh_format
        )
        for i, body in enumerate(vertices)
    }
    arrays = {"vertices": vertices.astype(np.float32), "faces": faces, "tokens": tokens.cpu().numpy()}
    sheet = [(body, "") for body in vertices]
    if given is not None:
        arrays |= {"source_tokens": given.tokens.cpu().numpy(), "given": ~given.hidden.cpu().numpy()}
        source = tokenizer.decode(given.tokens[None])[0].cpu().numpy()
        sheet = [(source, "source"), *((body, f"{i}") for i, body in enumerate(vertices))]
    files["bodies.png"] = encode_png(_draw_sheet(sheet, faces, _vertex_colors(tokenizer, given)))
    files["figures.json"] = (json.dumps(figures, indent=2) + "\n").encode()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return files | {"bodies.npz": buffer.getvalue()}


def _vertex_colors(tokenizer: MeshVQVAE, given: _Partial | None) -> np.ndarray:
    """(V, 3) sRGB in [0, 1]: another colour for the parts that are given."""
    drawn, kept = palette_colors(2)
    is_given = np.isin(vertex_parts(tokenizer).cpu(), [PARTS.index(part) for part in given.parts] if given else [])
    return np.where(is_given[:, None], kept, drawn)


def _draw_sheet(bodies: list[tuple[np.ndarray, str]], faces: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Canonical bodies (V, 3) with captions, seen from in front, in rows: (h, w, 3) uint8 RGB."""
    cells = []
    for body, caption in tqdm(bodies, desc="pictures", unit="body", leave=False):
        x, y, z = body.T
        facing_right = np.stack([z, -y, x], axis=1)  # in a camera's axes; the side view looks from the right
        cells.append((draw_side_view(facing_right[None], faces, _DRAWN_HEIGHT, colors[None]), caption))
    return panel([cells[i : i + _COLUMNS] for i in range(0, len(cells), _COLUMNS)])
