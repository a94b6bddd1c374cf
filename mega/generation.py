"""Bodies from a file, as the tokens of a tokenizer.

How different bodies are, and how much they look like bodies: figures that need no body model.

    apart_mm                 mean distance of the same vertex in two of the bodies; also over each part's vertices
    limb_spread_percent      deviation of a limb's length over the bodies, in percent of its mean; mean of 4 limbs
    asymmetry_percent        difference of a left limb and the right one, in percent of their mean; mean of 4 limbs
    stretched_edges_percent  share of the edges that are more than twice as long as the template's: torn surface
    reencoding_mm            mean distance of a vertex to where it comes back when the body is encoded and decoded:
                             the tokenizer was trained on true bodies, so what is none comes back changed
    surprise_nats            the prior's cross-entropy of half the tokens, given the other half: the number that
                             `pretrain_mega.py mode=test` measures on unseen bodies

Limbs are upper arm, forearm, thigh and shin. The last four are low for good bodies; of the first two none is better in
itself: they should be near those of true bodies (`reference` of generate.py). Bodies that all stand still surprise
little, too, and make no good prior: read `surprise_nats` beside `apart_mm`.

Random bodies and completions of bodies out of the masked transformer's prior, on disk. What `generate.py` runs.
"""

from __future__ import annotations

import inspect
import io
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from mega.bodies.parts import PARTS, limb_lengths, token_parts, vertex_parts
from mega.checkpoints import load_into, load_vqmae
from mega.config import read_device
from mega.convert import build_body
from mega.data.photos import InputError
from mega.export import encode_mesh, encode_png, make_output_folder, write_together
from mega.geometry import mean_distance, sample_spread
from mega.model import VQMAE, masked_cross_entropy
from mega.rendering import draw_side_view, panel
from mega.rendering.shading import palette_colors
from mega.sampling import sample_unconditional
from mega.tokenizer import load_tokenizer
from mesh_vq_vae import MeshVQVAE, unique_edges

_ENCODED_AT_ONCE = 16


def read_body_tokens(path: str | Path, tokenizer: MeshVQVAE, limit: int | None = None) -> Tensor:
    """Tokens (P, N) int64 of the bodies in an .npz, on the CPU.

    Args:
        path: with `tokens` (P, N) of this tokenizer, as demo.py, generate.py and the pre-training write them; or, if it
            has none, with `vertices` (P, V, 3) m of canonical meshes, which are encoded: y up, facing +z (root rotation
            zero); they are centred here.
        tokenizer: of these tokens.
        limit: how many bodies at most, the first ones.

    Raises InputError that names the file and what is wrong with it.
    """
    rows = slice(limit)
    arrays = _read(Path(path).expanduser())
    if "tokens" in arrays:
        tokens = arrays["tokens"][rows]
        if tokens.ndim != 2 or tokens.shape[1] != tokenizer.n_tokens or not np.issubdtype(tokens.dtype, np.integer):
            raise InputError(
                f"The tokens in {path} are {tokens.dtype} {tokens.shape}, but this tokenizer's are whole numbers "
                f"(people, {tokenizer.n_tokens}). Were they made with another tokenizer?"
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < tokenizer.codebook_size:
            raise InputError(
                f"The tokens in {path} are {tokens.min()}..{tokens.max()}, but this tokenizer has "
                f"{tokenizer.codebook_size} codes. Were they made with another tokenizer?"
            )
        return torch.from_numpy(tokens.astype(np.int64))
    vertices = arrays["vertices"][rows]
    if vertices.shape[1:] != (tokenizer.n_vertices, 3) or not np.isfinite(vertices).all():
        raise InputError(
            f"The vertices in {path} have shape {vertices.shape}, but this tokenizer's bodies are finite numbers "
            f"(people, {tokenizer.n_vertices}, 3)."
        )
    vertices = torch.from_numpy(vertices - vertices.mean(axis=1, keepdims=True)).float()
    device = tokenizer.template.device
    encoded = [tokenizer.encode(part.to(device)).cpu() for part in vertices.split(_ENCODED_AT_ONCE)]
    return torch.cat(encoded)


def _read(path: Path) -> dict[str, np.ndarray]:
    """`tokens` or else `vertices` of a file."""
    if not path.is_file():
        raise InputError(f"The file {path} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            name = next((n for n in ("tokens", "vertices") if n in file.files), None)
            if name is not None:
                return {name: file[name]}
            held = ", ".join(file.files)
    except (OSError, ValueError, EOFError, BadZipFile, AttributeError, TypeError) as error:
        raise InputError(f"{path} cannot be read as an .npz file: {error}.") from error
    raise InputError(f"{path} holds neither tokens nor vertices, but: {held}.")


_BODIES_AT_ONCE = 16
_LABELS = {
    "apart_mm": ("apart", "mm"),
    **{f"apart_{part}_mm": (f"  {part.replace('_', ' ')}", "mm") for part in PARTS},
    "limb_spread_percent": ("spread of limb lengths", "%"),
    "asymmetry_percent": ("left and right limbs differ", "%"),
    "stretched_edges_percent": ("edges stretched twice", "%"),
    "reencoding_mm": ("re-encoding distance", "mm"),
    "surprise_nats": ("surprise of a token", "nats"),
}


def measure_bodies(
    tokens: Tensor, vertices: Tensor, tokenizer: MeshVQVAE, model: VQMAE
) -> dict[str, float | int | None]:
    """The figures of bodies, by the names of the module's docstring; None where a single body has none.

    Besides them `apart_{part}_mm` for each of `PARTS`, and `bodies`, their number.

    Args:
        tokens: (P, N).
        vertices: (P, V, 3) m, the tokens decoded.
        tokenizer, model: of the tokens; the prior.
    """
    reencoding, surprise = [], []
    batches = list(zip(tokens.split(_BODIES_AT_ONCE), vertices.split(_BODIES_AT_ONCE), strict=True))
    for codes, bodies in tqdm(batches, desc="figures", unit="batch", leave=False):
        reencoding.append(mean_distance(tokenizer.decode(tokenizer.encode(bodies)), bodies))
        surprise.append(_surprise(codes, model))
    limbs = limb_lengths(tokenizer, vertices)  # (P, 4, 2)
    parts = vertex_parts(tokenizer)
    apart = {f"apart_{name}_mm": _apart(vertices[:, parts == i]) for i, name in enumerate(PARTS)}
    figures = {
        "apart_mm": _apart(vertices),
        **apart,
        "limb_spread_percent": (100 * limbs.std(dim=0) / limbs.mean(dim=0)).mean() if len(limbs) > 1 else math.nan,
        "asymmetry_percent": (100 * (limbs[..., 0] - limbs[..., 1]).abs() / limbs.mean(dim=-1)).mean(),
        "stretched_edges_percent": 100 * _stretched(vertices, tokenizer),
        "reencoding_mm": torch.cat(reencoding).mean(),
        "surprise_nats": torch.cat(surprise).mean(),
    }
    numbers = {name: float(value) for name, value in figures.items()}
    return {"bodies": len(tokens)} | {k: None if math.isnan(v) else v for k, v in numbers.items()}


def figures_table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """Figures of `measure_bodies` side by side, as text: a line each, a column for every set of bodies."""
    widths = [max(len(title), 8) for title in columns]
    titles = "  ".join(f"{title:>{w}}" for title, w in zip(columns, widths, strict=True))
    lines = [f"{'':34}{titles}"]
    for name, (label, unit) in _LABELS.items():
        values = [figures[name] for figures in columns.values()]
        said = ["-" if value is None else f"{value:.{2 if unit == 'nats' else 1}f}" for value in values]
        cells = "  ".join(f"{text:>{w}}" for text, w in zip(said, widths, strict=True))
        lines.append(f"{label:28}{unit:>5} {cells}")
    return "\n".join(lines)


def _apart(vertices: Tensor) -> Tensor:
    """Mean pairwise distance () mm in bodies (P, V, 3); NaN of one body or of no vertices."""
    return sample_spread(vertices)[0]


def _stretched(vertices: Tensor, tokenizer: MeshVQVAE) -> Tensor:
    """The share () of the edges of bodies (P, V, 3) that are more than twice as long as in the template."""
    edges = unique_edges(tokenizer.faces)

    def lengths(mesh: Tensor) -> Tensor:
        return (mesh[..., edges[:, 0], :] - mesh[..., edges[:, 1], :]).norm(dim=-1)

    limit = 2 * lengths(tokenizer.template)
    return torch.stack([(lengths(body) > limit).float().mean() for body in vertices]).mean()


@torch.no_grad()
def _surprise(tokens: Tensor, model: VQMAE) -> Tensor:
    """Cross-entropy (P,) nats of a token, given the half of the tokens (P, N) that it does not belong to."""
    order = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)).argsort(dim=1).to(tokens.device)
    first = order < tokens.shape[1] // 2
    surprise = tokens.new_zeros(len(tokens), dtype=torch.float32)
    for hidden in (first, ~first):
        logits = model(tokens, hidden)
        of_rows = [masked_cross_entropy(*row) for row in zip(logits, tokens, hidden, strict=True)]
        surprise += torch.stack(of_rows) * hidden.sum(dim=1) / tokens.shape[1]
    return surprise


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
    if set(given) == set(PARTS):
        raise InputError("given names every part, so there is nothing to draw: leave one out.")
    if config.source is not None and not given:
        raise InputError("source needs to know which of its parts to keep, for example given=head.")


def _given_parts(config: DictConfig) -> list[str]:
    return list(config.given)


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
