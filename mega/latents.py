"""What the latent space of a tokenizer encodes: interpolation, the effect of each token, exchange of pose and shape.

Latents (N, D) are what the encoder gives; codes (N, D) are the nearest that the codebook has. Working with codes and
not with their numbers makes no difference between one codebook and several residual ones: token n has changed when its
code has.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from mega.bodies.parts import PARTS, limb_lengths, token_centres, token_parts, vertex_parts
from mesh_vq_vae import MeshVQVAE, vertex_error

MM = 1000.0
_ENCODED_AT_ONCE = 16
_SHARES_SWAPPED = (0.25, 0.5, 0.75)


@torch.no_grad()
def encode(tokenizer: MeshVQVAE, vertices: Tensor) -> Tensor:
    """Canonical meshes (P, V, 3) -> latents (P, N, D), in the memory of a few meshes."""
    return torch.cat([tokenizer.encode_latents(part) for part in vertices.split(_ENCODED_AT_ONCE)])


@torch.no_grad()
def nearest_codes(tokenizer: MeshVQVAE, latents: Tensor) -> Tensor:
    """Latents (..., N, D) -> the codes (..., N, D) that the tokenizer represents them by."""
    flat = latents.flatten(0, -3)
    return tokenizer.vq_vae.lookup(tokenizer.quantize(flat)).view_as(latents)


@torch.no_grad()
def interpolate(tokenizer: MeshVQVAE, first: Tensor, last: Tensor, steps: int) -> tuple[Tensor, dict]:
    """Meshes between pairs of meshes: latents are interpolated linearly, then quantized and decoded.

    Args:
        first, last: (P, V, 3) canonical.
        steps: T, both ends included.

    Returns:
        Decoded meshes (P, T, V, 3).
        Numbers, lists of T each, means over the pairs: "share_of_last" (t), "step_mm" (V2V to the mesh before, 0 at
        first), "tokens_of_first_percent" and "tokens_of_last_percent" (tokens equal to those of either end), and
        "limb_error_percent" with "limb_error_percent_of_vertices": how far limb lengths are from the interpolated
        lengths of the two ends, for these meshes and for a linear interpolation of vertices, which shortens limbs.
    """
    t = torch.linspace(0, 1, steps, device=first.device)[:, None, None]
    ends = [encode(tokenizer, mesh)[:, None] for mesh in (first, last)]  # (P, 1, N, D)
    codes = nearest_codes(tokenizer, torch.lerp(ends[0], ends[1], t))  # (P, T, N, D)
    meshes = tokenizer.decode_codes(codes)  # (P, T, V, 3)
    moved = vertex_error(meshes[:, 1:].flatten(0, 1), meshes[:, :-1].flatten(0, 1)).view(len(first), -1)
    straight = torch.lerp(first[:, None], last[:, None], t)

    def limbs(bodies: Tensor) -> Tensor:  # (P, T, 4, 2)
        return limb_lengths(tokenizer, bodies.flatten(0, 1)).unflatten(0, bodies.shape[:2])

    wanted = torch.lerp(limbs(first[:, None]), limbs(last[:, None]), t)
    numbers = {"share_of_last": t.flatten(), "step_mm": torch.cat([moved.new_zeros(1), MM * moved.mean(0)])}
    for name, end in (("first", 0), ("last", -1)):
        same = (codes == codes[:, end, None]).all(-1).float()  # (P, T, N)
        numbers[f"tokens_of_{name}_percent"] = 100 * same.mean((0, 2))
    for name, bodies in (("limb_error_percent", meshes), ("limb_error_percent_of_vertices", straight)):
        numbers[name] = 100 * ((limbs(bodies) - wanted).abs() / wanted).mean((0, 2, 3))
    return meshes, {name: values.tolist() for name, values in numbers.items()}


@torch.no_grad()
def token_effects(tokenizer: MeshVQVAE, vertices: Tensor) -> Tensor:
    """How far each token moves each vertex: (N, V) m, when its code is exchanged for that of another body.

    Args:
        vertices: (P, V, 3) canonical, two bodies or more. The mean is over the P bodies, each of which gets the codes
            of the next one, a token at a time.
    """
    codes = nearest_codes(tokenizer, encode(tokenizer, vertices))  # (P, N, D)
    before, others = tokenizer.decode_codes(codes), codes.roll(1, dims=0)
    effects = []
    for n in tqdm(range(tokenizer.n_tokens), desc="tokens exchanged", unit="token", leave=False):
        changed = codes.clone()
        changed[:, n] = others[:, n]
        effects.append((tokenizer.decode_codes(changed) - before).norm(dim=-1).mean(0))
    return torch.stack(effects)


def describe_effects(tokenizer: MeshVQVAE, effects: Tensor) -> list[dict]:
    """For each token, of its effects (N, V) m: what it moves, how far, and how near to its centre.

    "part" and "centre_vertex" (`mega.bodies.parts`), "mean_mm" and "largest_mm" over the vertices,
    "own_part_percent", the share of all its displacement on the vertices of its part, "reach_cm", the mean distance of
    the displacement from the token's centre on the template, and "leads_vertices", how many vertices it moves most.
    """
    parts, centres, leader = token_parts(tokenizer), token_centres(tokenizer), effects.argmax(0)
    own = vertex_parts(tokenizer) == parts[:, None]  # (N, V)
    weights = effects / effects.sum(1, keepdim=True).clamp_min(1e-12)
    reach = (weights * torch.cdist(tokenizer.template[centres], tokenizer.template)).sum(1)
    columns = {
        "centre_vertex": centres,
        "mean_mm": MM * effects.mean(1),
        "largest_mm": MM * effects.amax(1),
        "own_part_percent": 100 * (weights * own).sum(1),
        "reach_cm": 100 * reach,
        "leads_vertices": torch.bincount(leader, minlength=len(effects)),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        {"token": n, "part": PARTS[part], **dict(zip(columns, row, strict=True))}
        for n, (part, row) in enumerate(zip(parts.tolist(), rows, strict=True))
    ]


@torch.no_grad()
def exchange_pose_and_shape(tokenizer: MeshVQVAE, quadruples: Tensor) -> tuple[dict[str, Tensor], dict]:
    """Which part of the latents is pose and which is shape, and whether one can be exchanged without the other.

    Args:
        quadruples: (P, 2, 2, V, 3) canonical meshes of pose i and shape j: [:, 0, 0] and [:, 1, 1] are two bodies A and
            B, [:, 0, 1] is B's shape in A's pose, the truth that an exchange of shapes should give.

    Returns:
        Meshes (P, V, 3) by name: "a", "b", "truth" as given; "by_latents", decoded from the latents of A plus the
        difference that the shape makes in B's pose; "by_tokens", A with those half of B's tokens that shape changes
        most relative to pose.
        Numbers, see `docs/latents.md`.
    """
    latents = encode(tokenizer, quadruples.flatten(0, 2)).unflatten(0, quadruples.shape[:3])  # (P, 2, 2, N, D)
    codes = nearest_codes(tokenizer, latents)
    moves = {"shape": (0, 1), "pose": (1, 0), "both": (1, 1)}
    changed = {name: (codes[:, 0, 0] != codes[:, i, j]).any(-1).float().mean() for name, (i, j) in moves.items()}
    squared = {
        name: (latents[:, i, j] - latents[:, 0, 0]).square().sum(-1).mean(0) for name, (i, j) in moves.items()
    }  # (N,) each
    shape_share = squared["shape"] / (squared["shape"] + squared["pose"]).clamp_min(1e-12)  # (N,)

    a, b, truth = quadruples[:, 0, 0], quadruples[:, 1, 1], quadruples[:, 0, 1]
    moved_by_shape = latents[:, 0, 0] + latents[:, 1, 1] - latents[:, 1, 0]
    meshes = {"a": a, "b": b, "truth": truth}
    meshes["by_latents"] = tokenizer.decode_codes(nearest_codes(tokenizer, moved_by_shape))
    by_tokens = {}
    for share in _SHARES_SWAPPED:
        swapped = torch.zeros_like(shape_share, dtype=torch.bool)
        swapped[shape_share.argsort(descending=True)[: round(share * len(shape_share))]] = True
        by_tokens[share] = tokenizer.decode_codes(torch.where(swapped[:, None], codes[:, 1, 1], codes[:, 0, 0]))
    meshes["by_tokens"] = by_tokens[0.5]
    parts = token_parts(tokenizer)
    numbers = {
        "changed_tokens_percent": {name: 100 * share.item() for name, share in changed.items()},
        "squared_latent_change": {name: value.sum().item() for name, value in squared.items()},
        "shape_share_of_latent_change_percent": {
            part: 100 * shape_share[parts == i].mean().item() for i, part in enumerate(PARTS) if (parts == i).any()
        },
        "shape_share_by_token_percent": (100 * shape_share).tolist(),
        "V2V_mm_to_truth": {
            "a, unchanged": _v2v(a, truth),
            "truth, encoded and decoded": _v2v(tokenizer.decode_codes(codes[:, 0, 1]), truth),
            "by_latents": _v2v(meshes["by_latents"], truth),
            **{f"by_{round(100 * s)}_percent_of_tokens": _v2v(m, truth) for s, m in by_tokens.items()},
            "b": _v2v(b, truth),
        },
    }
    return meshes, numbers


@torch.no_grad()
def swap_parts(tokenizer: MeshVQVAE, a: Tensor, b: Tensor, parts: tuple[str, ...]) -> Tensor:
    """Meshes (P, V, 3) decoded from the tokens of `a`, with those of some `PARTS` taken from `b`."""
    codes_a, codes_b = (nearest_codes(tokenizer, encode(tokenizer, mesh)) for mesh in (a, b))
    wanted = torch.tensor([PARTS.index(part) for part in parts], device=a.device)
    swapped = torch.isin(token_parts(tokenizer), wanted)
    return tokenizer.decode_codes(torch.where(swapped[:, None], codes_b, codes_a))


def _v2v(predicted: Tensor, true: Tensor) -> float:
    return MM * vertex_error(predicted, true).mean().item()
