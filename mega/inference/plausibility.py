"""How different bodies are, and how much they look like bodies: figures that need no body model.

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
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from mega.geometry import mean_distance, sample_spread
from mega.inference.parts import PARTS, limb_lengths, vertex_parts
from mega.models import VQMAE, masked_cross_entropy
from mesh_vq_vae import MeshVQVAE

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
    corners = tokenizer.faces
    edges = torch.cat([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]]).sort(dim=1).values.unique(dim=0)

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
