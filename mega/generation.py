"""Random bodies: their tokens from a file, figures about them, and the files of `generate.py`.

The figures need no body model:

    mean_pairwise_mm         mean distance of the same vertex in two of the bodies; also over the vertices of each part
    limb_spread_percent      standard deviation of a limb's length over the bodies, in percent of its mean
    asymmetry_percent        difference between a left limb and the right one, in percent of their mean
    stretched_edges_percent  share of edges that are more than twice as long as the template's: torn surface
    reencoding_mm            mean vertex error when a body is encoded and decoded; the tokenizer was trained on true
                             bodies and changes others more
    cross_entropy_nats       the prior's cross-entropy of half the tokens given the other half, which
                             `pretrain_mega.py mode=test` measures on unseen bodies

Limbs are upper arm, forearm, thigh and shin; their mean is taken. The last four are low for good bodies. The first two
should be near those of true bodies (`reference` of generate.py). Bodies that all stand still have a low cross-entropy
as well, and are no good prior: read `cross_entropy_nats` together with `mean_pairwise_mm`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mega.bodies.parts import PARTS, limb_lengths, token_parts, vertex_parts
from mega.console import format_table
from mega.export import encode_mesh, encode_npz, encode_png
from mega.external_files import require
from mega.geometry import mean_distance, sample_spread
from mega.model import VQMAE
from mega.photos import InputError
from mega.rendering import draw_body, panel
from mega.rendering.shading import palette_colors
from mega_common.files import read_arrays
from mesh_vq_vae import MeshVQVAE
from mesh_vq_vae.mesh_ops import unique_edges

REFERENCE_BODIES = 256  # as many bodies of a reference are measured
_AT_ONCE = 16  # bodies that are encoded or decoded together
_COLUMNS = 8  # bodies in a row of the picture
_CANONICAL_TO_CAMERA = np.array([1, -1, -1], np.float32)
_LABELS = {
    "mean_pairwise_mm": ("mean pairwise distance", "mm"),
    **{f"mean_pairwise_{part}_mm": (f"  {part.replace('_', ' ')}", "mm") for part in PARTS},
    "limb_spread_percent": ("spread of limb lengths", "%"),
    "asymmetry_percent": ("left and right limbs differ", "%"),
    "stretched_edges_percent": ("edges stretched twice", "%"),
    "reencoding_mm": ("re-encoding error", "mm"),
    "cross_entropy_nats": ("cross-entropy", "nats"),
}


def read_body_tokens(path: str | Path, tokenizer: MeshVQVAE, limit: int | None = None) -> Tensor:
    """Tokens (P, N) int64 of the bodies in an .npz, on the CPU.

    Args:
        path: file with `tokens` (P, N) of this tokenizer, as demo.py, generate.py and the pre-training write them, or
            with `vertices` (P, V, 3) m of canonical meshes (root rotation zero, y up, facing +z), which are centred and
            encoded.
        limit: read only the first ones.

    Raises FileNotFoundError, or ValueError that names the file and what is wrong with it.
    """
    path = Path(path).expanduser()
    require(path)
    arrays = {name: array[:limit] for name, array in read_arrays(path, ("tokens", "vertices")).items()}
    if not arrays:
        raise InputError(f"{path} holds neither tokens nor vertices.")
    if "tokens" in arrays:
        tokens = arrays["tokens"]
        if tokens.shape[1:] != (tokenizer.n_tokens,) or not np.issubdtype(tokens.dtype, np.integer):
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
    vertices = arrays["vertices"]
    if vertices.shape[1:] != (tokenizer.n_vertices, 3) or not np.isfinite(vertices).all():
        raise InputError(
            f"The vertices in {path} have shape {vertices.shape}, but this tokenizer's bodies are finite numbers "
            f"(people, {tokenizer.n_vertices}, 3)."
        )
    vertices = torch.from_numpy(vertices - vertices.mean(axis=1, keepdims=True)).float()
    device = tokenizer.template.device
    return torch.cat([tokenizer.encode(part.to(device)).cpu() for part in vertices.split(_AT_ONCE)])


def given_tokens(tokenizer: MeshVQVAE, parts: Sequence[str], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A partly given body for `sample_unconditional`: its tokens (N,), and masked (N,) bool, those of other parts.

    Raises InputError if no token, or every token, belongs to the given parts.
    """
    part_of_token = token_parts(tokenizer)
    kept = torch.isin(part_of_token, part_of_token.new_tensor([PARTS.index(part) for part in parts]))
    if not 0 < kept.sum() < len(kept):
        raise InputError(f"{int(kept.sum())} of the {len(kept)} tokens belong to {', '.join(parts)}: name other parts.")
    return tokens, ~kept


def decode_bodies(tokens: Tensor, tokenizer: MeshVQVAE) -> Tensor:
    """Tokens (P, N) -> vertices (P, V, 3) m."""
    return torch.cat([tokenizer.decode(part) for part in tokens.split(_AT_ONCE)])


def measure_bodies(
    tokens: Tensor, vertices: Tensor, tokenizer: MeshVQVAE, model: VQMAE
) -> dict[str, float | int | None]:
    """The figures in the module's docstring, `mean_pairwise_{part}_mm` for each of PARTS, and `bodies`, their number.

    Those that need two bodies are None for a single one.

    Args:
        tokens: (P, N).
        vertices: (P, V, 3) m, the decoded tokens.
        model: the prior.
    """
    reencoding, cross_entropy = [], []
    batches = list(zip(tokens.split(_AT_ONCE), vertices.split(_AT_ONCE), strict=True))
    for codes, bodies in tqdm(batches, desc="figures", unit="batch", leave=False):
        reencoding.append(mean_distance(tokenizer.decode(tokenizer.encode(bodies)), bodies))
        cross_entropy.append(_cross_entropy(codes, model))
    limbs = limb_lengths(tokenizer, vertices)  # (P, 4, 2)
    parts = vertex_parts(tokenizer)
    by_part = {f"mean_pairwise_{name}_mm": sample_spread(vertices[:, parts == i])[0] for i, name in enumerate(PARTS)}
    figures = {
        "mean_pairwise_mm": sample_spread(vertices)[0],
        **by_part,
        "limb_spread_percent": (100 * limbs.std(dim=0) / limbs.mean(dim=0)).mean() if len(limbs) > 1 else math.nan,
        "asymmetry_percent": (100 * (limbs[..., 0] - limbs[..., 1]).abs() / limbs.mean(dim=-1)).mean(),
        "stretched_edges_percent": 100 * _stretched_share(vertices, tokenizer),
        "reencoding_mm": torch.cat(reencoding).mean(),
        "cross_entropy_nats": torch.cat(cross_entropy).mean(),
    }
    figures = {name: float(value) for name, value in figures.items()}
    return {"bodies": len(tokens)} | {k: None if math.isnan(v) else v for k, v in figures.items()}


def figures_table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """The figures of `measure_bodies` as text, with one column for each set of bodies."""
    rows = []
    for name, (label, unit) in _LABELS.items():
        values = [figures[name] for figures in columns.values()]
        cells = ["-" if value is None else f"{value:.{2 if unit == 'nats' else 1}f}" for value in values]
        rows.append([label, unit, *cells])
    return format_table(["", "", *columns], rows)


def _stretched_share(vertices: Tensor, tokenizer: MeshVQVAE) -> Tensor:
    """The share () of the edges of bodies (P, V, 3) that are more than twice as long as in the template."""
    edges = unique_edges(tokenizer.faces)

    def lengths(mesh: Tensor) -> Tensor:
        return (mesh[edges[:, 0]] - mesh[edges[:, 1]]).norm(dim=-1)

    limit = 2 * lengths(tokenizer.template)
    return torch.stack([(lengths(body) > limit).float().mean() for body in vertices]).mean()


@torch.no_grad()
def _cross_entropy(tokens: Tensor, model: VQMAE) -> Tensor:
    """Cross-entropy (P,) nats per token of tokens (P, N), each given the half that it does not belong to."""
    order = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)).argsort(dim=1).to(tokens.device)
    first = order < tokens.shape[1] // 2
    losses = [F.cross_entropy(model(tokens, half).mT, tokens, reduction="none") * half for half in (first, ~first)]
    return sum(losses).mean(dim=1)


def encode_results(
    tokens: Tensor,
    vertices: Tensor,
    tokenizer: MeshVQVAE,
    parts: Sequence[str],
    given: tuple[Tensor, Tensor] | None,
    figures: dict,
    mesh_format: str,
) -> dict[str, bytes]:
    """The files of `generate.py`, {file name: content}: meshes, a picture of all, the figures, the arrays.

    Args:
        tokens: (P, N); vertices: (P, V, 3) m.
        parts, given: the given parts and their body, see `given_tokens`.
    """
    vertices, faces = vertices.cpu().numpy(), tokenizer.faces.cpu().numpy().astype(np.int32)
    arrays = {"vertices": vertices.astype(np.float32), "faces": faces, "tokens": tokens.cpu().numpy()}
    bodies = [(body, "") for body in vertices]
    if given is not None:
        source_tokens, masked = given
        arrays |= {"source_tokens": source_tokens.cpu().numpy(), "given": ~masked.cpu().numpy()}
        source = tokenizer.decode(source_tokens[None])[0].cpu().numpy()
        bodies = [(source, "source"), *((body, f"{i}") for i, body in enumerate(vertices))]

    drawn_color, given_color = palette_colors(2)
    is_given = np.isin(vertex_parts(tokenizer).cpu(), [PARTS.index(part) for part in parts])
    colors = np.where(is_given[:, None], given_color, drawn_color)  # (V, 3)
    bodies = tqdm(bodies, desc="pictures", unit="body", leave=False)
    cells = [(draw_body(body, faces, colors=colors[None]), caption) for body, caption in bodies]

    digits = max(2, len(str(len(vertices) - 1)))
    files = {}
    for i, body in enumerate(vertices):
        mesh = encode_mesh(body * _CANONICAL_TO_CAMERA, faces, drawn_color, mesh_format)
        files[f"body_{i:0{digits}}.{mesh_format}"] = mesh
    files["bodies.png"] = encode_png(panel([cells[i : i + _COLUMNS] for i in range(0, len(cells), _COLUMNS)]))
    files["figures.json"] = (json.dumps(figures, indent=2) + "\n").encode()
    return files | {"bodies.npz": encode_npz(arrays)}
