"""Analyse what the tokens of a tokenizer encode: numbers in latent.json, and pictures.

    python tools/latent_analysis.py                                     the default tokenizer of the Anny body
    python tools/latent_analysis.py experiment=mesh_vqvae_54            the released one, on your own motions …
    python tools/latent_analysis.py experiment=mesh_vqvae_54 data=3dpw_meshes     … or on 3DPW's test people

    bodies=64              unseen bodies of the data's test split; pairs of them are interpolated and exchanged
    token_bodies=8         bodies in which the code of each token is exchanged
    steps=7                meshes of an interpolation, both ends included
    pair=0                 the pair of bodies in the pictures
    output=outputs/latents for latent.json, interpolation.png, tokens.png, exchange.png, and latents.jpg with all three
    weights=FILE           the tokenizer
    device=auto seed=0     auto | cpu | cuda | cuda:N | mps; seed of the random bodies

interpolation.png: meshes between two bodies, by interpolating, quantizing and decoding latents; below, by interpolating
vertices, which shortens limbs. tokens.png: the template, each vertex coloured by the token that moves it most, by the
body part of this token, and by the share of the token's change that is due to shape; then the effect of the strongest
token of each part. exchange.png: two bodies, the shape of one in the pose of the other, and bodies with some tokens of
each. docs/latents.md explains the numbers.

Latents (N, D) are what the encoder gives, codes (N, D) what the codebook has nearest to them. A token has changed when
its code has; this holds for one codebook and for several residual ones.
"""

import json
from functools import partial

import cv2
import numpy as np
import torch
from omegaconf import DictConfig
from scipy.spatial.transform import Rotation
from torch import Tensor
from tqdm import tqdm

from mega.bodies import BodyModel
from mega.bodies.parts import PARTS, limb_lengths, token_centres, token_parts, vertex_parts
from mega.bodies.smplh import GENDERS
from mega.checkpoints import load_tokenizer
from mega.config import build, main
from mega.export import encode_png, make_output_folder, write_together
from mega.photos import InputError
from mega.rendering import draw_people, panel
from mega.rendering.panels import color_bar, round_limit
from mega.rendering.shading import PALETTE, heat_colors
from mega_common.device import read_device
from mesh_vq_vae import MeshVQVAE, vertex_error

MM = 1000.0
HEIGHT = 300  # px, of each body's picture
FROM_A, FROM_B, EXCHANGED = PALETTE[:3]
_ENCODED_AT_ONCE = 16
_SHARES_SWAPPED = (0.25, 0.5, 0.75)
_FAR = 12.0  # m from the camera to the bodies: nearly parallel rays


@main("latent_analysis")
@torch.no_grad()
def analyse(config: DictConfig) -> None:
    if config.pair >= config.bodies // 2:
        raise InputError(f"pair={config.pair}: {config.bodies} bodies are {config.bodies // 2} pairs, counted from 0.")
    folder, device = make_output_folder(config.output), read_device(config.device)
    body = build(config.body)
    tokenizer = load_tokenizer(config.weights, partial(build(config.tokenizer), body=body)).to(device).eval()
    quadruples = make_quadruples(config, body, device)  # (P, 2, 2, V, 3)
    a, b = quadruples[:, 0, 0], quadruples[:, 1, 1]

    between, interpolation = interpolate(tokenizer, a, b, config.steps)
    effects = token_effects(tokenizer, torch.cat([a, b])[: config.token_bodies])
    tokens = describe_effects(tokenizer, effects)
    exchanged, exchange = exchange_pose_and_shape(tokenizer, quadruples)
    numbers = {
        "weights": str(config.weights),
        "tokens_per_body": tokenizer.n_tokens,
        "pairs": len(a),
        "interpolation": interpolation,
        "exchange": exchange,
        "token_means": {
            name: float(np.mean([token[name] for token in tokens]))
            for name in ("mean_mm", "largest_mm", "own_part_percent", "reach_cm")
        },
        "tokens_of_part": {part: sum(token["part"] == part for token in tokens) for part in PARTS},
        "tokens": tokens,
    }

    pair = config.pair
    shape_share = np.array(exchange["shape_share_by_token_percent"])
    pictures = {
        "interpolation": draw_interpolation(tokenizer, between[pair], a[pair], b[pair]),
        "tokens": draw_tokens(tokenizer, effects.cpu().numpy(), tokens, shape_share),
        "exchange": draw_exchange(tokenizer, {name: meshes[pair : pair + 1] for name, meshes in exchanged.items()}),
    }
    files = {f"{name}.png": encode_png(picture) for name, picture in pictures.items()}
    sheet = panel([[(picture, "")] for picture in pictures.values()])[..., ::-1]
    files["latents.jpg"] = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    files["latent.json"] = (json.dumps(numbers, indent=2) + "\n").encode()
    write_together(folder, "latent", files)
    print(summary(numbers))
    print(f"pictures and latent.json in {folder}/")


def make_quadruples(config: DictConfig, body: BodyModel, device: torch.device) -> Tensor:
    """Bodies of the data's test split in pairs: [p, i, j] has the pose of body i and the shape of body j of pair p.

    Returns:
        (P, 2, 2, V, 3) m. A shape includes its gender, where the data has genders.
    """
    size = "test_meshes" if "test_meshes" in config.data else "test_frames"
    batches = list(build(config.data, **{size: config.bodies})(body=body).test_dataloader())
    columns = {name: torch.cat([batch[name] for batch in batches])[: config.bodies] for name in batches[0]}
    if len(columns["pose"]) < 2:
        raise InputError("at least two bodies are needed, but the data's test split has fewer.")
    body, made = body.to(device), []
    for p in range(0, len(columns["pose"]) - 1, 2):
        pair = {name: values[p : p + 2] for name, values in columns.items()}
        poses = pair["pose"].to(device).repeat_interleave(2, dim=0)
        shapes = pair["shape" if "shape" in pair else "betas"].to(device).repeat(2, 1)
        gender = {"gender": [GENDERS[i] for i in pair["gender"].tolist()] * 2} if "gender" in pair else {}
        made.append(body(poses, shapes, **gender).unflatten(0, (2, 2)))
    return torch.stack(made)


def encode(tokenizer: MeshVQVAE, vertices: Tensor) -> Tensor:
    """Canonical meshes (P, V, 3) -> latents (P, N, D), in the memory of a few meshes."""
    return torch.cat([tokenizer.encode_latents(part) for part in vertices.split(_ENCODED_AT_ONCE)])


def nearest_codes(tokenizer: MeshVQVAE, latents: Tensor) -> Tensor:
    """Latents (..., N, D) -> the codes (..., N, D) that the tokenizer represents them by."""
    return tokenizer.vq_vae.lookup(tokenizer.quantize(latents.flatten(0, -3))).view_as(latents)


def interpolate(tokenizer: MeshVQVAE, first: Tensor, last: Tensor, steps: int) -> tuple[Tensor, dict]:
    """Meshes between pairs of meshes: latents are interpolated linearly, then quantized and decoded.

    Args:
        first, last: (P, V, 3) canonical.
        steps: T, both ends included.

    Returns:
        Decoded meshes (P, T, V, 3).
        The rows of the first table in docs/latents.md: {name: T means over the pairs}.
    """
    t = torch.linspace(0, 1, steps, device=first.device)[:, None, None]
    ends = [encode(tokenizer, mesh)[:, None] for mesh in (first, last)]  # (P, 1, N, D)
    codes = nearest_codes(tokenizer, torch.lerp(*ends, t))  # (P, T, N, D)
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
    """For each token with its effects (N, V) m: what it moves, how far, and how near to its centre.

    The last table in docs/latents.md explains the names.
    """
    parts, centres, leader = token_parts(tokenizer), token_centres(tokenizer), effects.argmax(0)
    own = vertex_parts(tokenizer) == parts[:, None]  # (N, V)
    weights = effects / effects.sum(1, keepdim=True).clamp_min(1e-12)
    reach = (weights * torch.cdist(tokenizer.template[centres], tokenizer.template)).sum(1)
    columns = {
        "token": range(len(effects)),
        "part": [PARTS[part] for part in parts.tolist()],
        "centre_vertex": centres.tolist(),
        "mean_mm": (MM * effects.mean(1)).tolist(),
        "largest_mm": (MM * effects.amax(1)).tolist(),
        "own_part_percent": (100 * (weights * own).sum(1)).tolist(),
        "reach_cm": (100 * reach).tolist(),
        "leads_vertices": torch.bincount(leader, minlength=len(effects)).tolist(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def exchange_pose_and_shape(tokenizer: MeshVQVAE, quadruples: Tensor) -> tuple[dict[str, Tensor], dict]:
    """Which part of the latents is pose and which is shape, and whether one can be exchanged without the other.

    Args:
        quadruples: (P, 2, 2, V, 3) canonical meshes of pose i and shape j: [:, 0, 0] and [:, 1, 1] are two bodies A and
            B, [:, 0, 1] is B's shape in A's pose, the truth that an exchange of shapes should give.

    Returns:
        Meshes (P, V, 3) by name: "a", "b", "truth" as given; "by_latents", decoded from the latents of A plus the
        difference that the shape makes in B's pose; "by_tokens", A with the half of B's tokens that shape changes most
        relative to pose.
        The numbers of "Exchange of pose and shape" in docs/latents.md.
    """
    latents = encode(tokenizer, quadruples.flatten(0, 2)).unflatten(0, quadruples.shape[:3])  # (P, 2, 2, N, D)
    codes = nearest_codes(tokenizer, latents)
    changed, squared = {}, {}
    for name, (i, j) in {"shape": (0, 1), "pose": (1, 0), "both": (1, 1)}.items():
        changed[name] = 100 * (codes[:, 0, 0] != codes[:, i, j]).any(-1).float().mean().item()
        squared[name] = (latents[:, i, j] - latents[:, 0, 0]).square().sum(-1).mean(0)  # (N,)
    shape_share = squared["shape"] / (squared["shape"] + squared["pose"]).clamp_min(1e-12)  # (N,)

    a, b, truth = quadruples[:, 0, 0], quadruples[:, 1, 1], quadruples[:, 0, 1]
    moved_by_shape = latents[:, 0, 0] + latents[:, 1, 1] - latents[:, 1, 0]
    by_latents = tokenizer.decode_codes(nearest_codes(tokenizer, moved_by_shape))
    by_tokens, order = {}, shape_share.argsort(descending=True)
    for share in _SHARES_SWAPPED:
        swapped = codes[:, 0, 0].clone()
        chosen = order[: round(share * len(order))]
        swapped[:, chosen] = codes[:, 1, 1][:, chosen]
        by_tokens[share] = tokenizer.decode_codes(swapped)
    compared = {
        "a, unchanged": a,
        "truth, encoded and decoded": tokenizer.decode_codes(codes[:, 0, 1]),
        "by_latents": by_latents,
        **{f"by_{round(100 * share)}_percent_of_tokens": meshes for share, meshes in by_tokens.items()},
        "b": b,
    }
    parts = token_parts(tokenizer)
    numbers = {
        "changed_tokens_percent": changed,
        "squared_latent_change": {name: value.sum().item() for name, value in squared.items()},
        "shape_share_of_latent_change_percent": {
            part: 100 * shape_share[parts == i].mean().item() for i, part in enumerate(PARTS) if (parts == i).any()
        },
        "shape_share_by_token_percent": (100 * shape_share).tolist(),
        "V2V_mm_to_truth": {name: MM * vertex_error(meshes, truth).mean().item() for name, meshes in compared.items()},
    }
    return {"a": a, "b": b, "truth": truth, "by_latents": by_latents, "by_tokens": by_tokens[0.5]}, numbers


def swap_parts(tokenizer: MeshVQVAE, a: Tensor, b: Tensor, parts: tuple[str, ...]) -> Tensor:
    """Meshes (P, V, 3) decoded from the tokens of `a`, with those of some `PARTS` taken from `b`."""
    codes_a, codes_b = (nearest_codes(tokenizer, encode(tokenizer, mesh)) for mesh in (a, b))
    wanted = torch.tensor([PARTS.index(part) for part in parts], device=a.device)
    swapped = torch.isin(token_parts(tokenizer), wanted)
    return tokenizer.decode_codes(torch.where(swapped[:, None], codes_b, codes_a))


def draw_row(tokenizer: MeshVQVAE, bodies: list[tuple[Tensor, np.ndarray, str]], degrees: float = 25) -> list:
    """Cells of a panel, of canonical meshes (V, 3), colours (3,) or (V, 3), and captions.

    All stand on one floor at the same scale, turned by `degrees` about the vertical axis.
    """
    turn = Rotation.from_euler("y", degrees, degrees=True)
    turned = [turn.apply(vertices.cpu().numpy()) for vertices, _, _ in bodies]
    breadth, tallest, _ = np.max([np.ptp(vertices, axis=0) for vertices in turned], axis=0)
    metres = 1.06 * tallest  # height of a picture
    width = round(HEIGHT * max(0.45, 1.1 * breadth / metres))
    focal, centre = HEIGHT / metres * _FAR, (width / 2, HEIGHT / 2)
    cells = []
    for vertices, (_, color, caption) in zip(turned, bodies, strict=True):
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        x, y, z = (vertices - [(low[0] + high[0]) / 2, low[1] + 0.47 * metres, 0]).T  # the floor near the lower edge
        seen = np.stack([x, -y, _FAR - z], axis=1).astype(np.float32)
        colors = np.broadcast_to(color, seen.shape).astype(np.float32)
        paper = np.full((HEIGHT, width, 3), 255, np.uint8)
        faces = tokenizer.faces.cpu().numpy()
        cells.append((draw_people(paper, seen[None], faces, focal, centre, colors[None]), caption))
    return cells


def draw_interpolation(tokenizer: MeshVQVAE, between: Tensor, a: Tensor, b: Tensor) -> np.ndarray:
    """Decoded meshes (T, V, 3) over the linear interpolation of the vertices of `a` and `b` (V, 3)."""
    shares = np.linspace(0, 1, len(between))
    straight = [torch.lerp(a, b, float(t)) for t in shares]
    colors = [(1 - t) * FROM_A + t * FROM_B for t in shares]
    rows = []
    for meshes, name in ((between, "latents"), (straight, "vertices")):
        captions = [f"{name}: A", *(f"{100 * t:.0f} % B" for t in shares[1:-1]), "B"]
        rows.append(draw_row(tokenizer, list(zip(meshes, colors, captions, strict=True))))
    return panel(rows)


def draw_tokens(tokenizer: MeshVQVAE, effects: np.ndarray, tokens: list[dict], shape_share: np.ndarray) -> np.ndarray:
    """Which token moves each vertex most, its properties, and the effect (V,) of the strongest token of each part.

    Args:
        effects: (N, V) m.
        tokens: N descriptions (`describe_effects`).
        shape_share: (N,) percent of a token's latent change that is due to shape.
    """
    template = tokenizer.template
    leader = effects.argmax(0)  # (V,)
    by_token = PALETTE[colors_of_neighbours(leader, tokenizer.faces.cpu().numpy(), len(effects))[leader]]
    by_part = PALETTE[[PARTS.index(tokens[n]["part"]) for n in leader]]
    most = 10 * np.ceil(np.quantile(shape_share, 0.9) / 10)
    by_share = heat_colors(shape_share[leader], most)
    views = []
    for colors, caption in (
        (by_token, "token that moves it most"),
        (by_part, "its part"),
        (by_share, f"its share of shape, 0 to {most:.0f} %"),
    ):
        for degrees, side in ((0, "front"), (180, "back")):
            views += draw_row(tokenizer, [(template, colors, f"{caption}, {side}")], degrees)

    strongest = {}  # part -> its token with the largest effect
    for token in sorted(tokens, key=lambda token: token["mean_mm"]):
        strongest[token["part"]] = token["token"]
    shown = {part: strongest[part] for part in PARTS if part in strongest}
    limit = round_limit(float(np.quantile(effects[list(shown.values())].max(0), 0.95)))
    heat = [
        (template, heat_colors(effects[n], limit), f"token {n}: {part.replace('_', ' ')}") for part, n in shown.items()
    ]
    return panel([views, [*draw_row(tokenizer, heat, 0), (color_bar(HEIGHT, limit), "")]])


def colors_of_neighbours(owner: np.ndarray, faces: np.ndarray, n_tokens: int) -> np.ndarray:
    """Colours (N,) of the palette for the tokens: different for adjacent tokens, and all used about equally often."""
    pairs = owner[faces[:, [0, 1, 1, 2, 2, 0]]].reshape(-1, 2)
    touch = np.zeros((n_tokens, n_tokens), bool)
    touch[pairs[:, 0], pairs[:, 1]] = touch[pairs[:, 1], pairs[:, 0]] = True
    colors, used = np.full(n_tokens, -1), np.zeros(len(PALETTE), int)
    for n in range(n_tokens):
        taken = np.isin(np.arange(len(PALETTE)), colors[touch[n]])
        colors[n] = np.where(taken, n_tokens + 1, used).argmin()
        used[colors[n]] += 1
    return colors


def draw_exchange(tokenizer: MeshVQVAE, meshes: dict[str, Tensor]) -> np.ndarray:
    """The first pair of meshes {name: (P, V, 3)} of `exchange_pose_and_shape`, and A with parts of B."""
    row = [
        (meshes["a"][0], FROM_A, "A"),
        (meshes["b"][0], FROM_B, "B"),
        (meshes["truth"][0], EXCHANGED, "pose of A, shape of B"),
        (meshes["by_latents"][0], EXCHANGED, "by latents"),
        (meshes["by_tokens"][0], EXCHANGED, "half of B's tokens"),
    ]
    for name in ("arm", "leg"):
        swapped = swap_parts(tokenizer, meshes["a"], meshes["b"], (f"left_{name}", f"right_{name}"))
        row.append((swapped[0], EXCHANGED, f"A, tokens of B's {name}s"))
    return panel([draw_row(tokenizer, row)])


def summary(numbers: dict) -> str:
    """The main numbers, one per line."""
    middle = len(numbers["interpolation"]["share_of_last"]) // 2
    limbs, straight = (numbers["interpolation"][f"limb_error_percent{which}"][middle] for which in ("", "_of_vertices"))
    changed, means = numbers["exchange"]["changed_tokens_percent"], numbers["token_means"]
    errors = [f"{name} {value:.1f}" for name, value in numbers["exchange"]["V2V_mm_to_truth"].items()]
    return (
        f"limb lengths halfway between two bodies, off by: {limbs:.1f} % (latents), {straight:.1f} % (vertices)\n"
        f"a token moves the surface by {means['mean_mm']:.1f} mm on average and {means['largest_mm']:.0f} mm at most, "
        f"{means['own_part_percent']:.0f} % of it on its own part of the body\n"
        f"tokens that change with the shape {changed['shape']:.0f} %, with the pose {changed['pose']:.0f} %, "
        f"with both {changed['both']:.0f} %\n"
        f"shape of B in the pose of A, V2V in mm: {', '.join(errors)}"
    )


if __name__ == "__main__":
    analyse()
