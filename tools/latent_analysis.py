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
    device=auto seed=0     auto | cpu | cuda; seed of the random bodies

interpolation.png: meshes between two bodies, by interpolating, quantizing and decoding latents; below, by interpolating
vertices, which shortens limbs. tokens.png: the template, each vertex coloured by the token that moves it most, by the
body part of this token, and by the share of the token's change that is due to shape; then the effect of the strongest
token of each part. exchange.png: two bodies, the shape of one in the pose of the other, and bodies with some tokens of
each. docs/latents.md explains the numbers.
"""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mega.bodies import BodyModel
from mega.bodies.parts import PARTS
from mega.bodies.smplh import GENDERS
from mega.checkpoints import load_tokenizer
from mega.config import build, main
from mega.export import encode_png, make_output_folder, write_together
from mega.latents import describe_effects, exchange_pose_and_shape, interpolate, swap_parts, token_effects
from mega.photos import InputError
from mega.rendering import draw_people, panel
from mega.rendering.panels import color_bar, round_limit
from mega.rendering.shading import PALETTE, heat_colors
from mega_common.device import read_device
from mesh_vq_vae import MeshVQVAE

HEIGHT = 300  # px, of each body's picture
FROM_A, FROM_B = PALETTE[0], PALETTE[1]
EXCHANGED = PALETTE[2]
_FAR = 12.0  # m from the camera to the bodies: nearly parallel rays


@main("latent_analysis")
def analyse(config: DictConfig) -> None:
    if config.pair >= config.bodies // 2:
        raise InputError(f"pair={config.pair}: {config.bodies} bodies are {config.bodies // 2} pairs, counted from 0.")
    folder, device = make_output_folder(config.output), read_device(config.device)
    body = build(config.body)
    tokenizer = load_tokenizer(config.weights, partial(build(config.tokenizer), body=body)).to(device).eval()
    quadruples = make_quadruples(body.to(device), draw_bodies(config, body), device)  # (P, 2, 2, V, 3)
    a, b = quadruples[:, 0, 0], quadruples[:, 1, 1]

    between, interpolation = interpolate(tokenizer, a, b, config.steps)
    effects = token_effects(tokenizer, torch.cat([a, b])[: config.token_bodies])
    tokens = describe_effects(tokenizer, effects)
    exchanged, exchange = exchange_pose_and_shape(tokenizer, quadruples)

    pair, faces = config.pair, tokenizer.faces.cpu().numpy()
    shape_share = np.array(exchange["shape_share_by_token_percent"])
    pictures = {
        "interpolation": draw_interpolation(between[pair], a[pair], b[pair], faces),
        "tokens": draw_tokens(tokenizer, effects.cpu().numpy(), tokens, shape_share),
        "exchange": draw_exchange(tokenizer, {name: meshes[pair : pair + 1] for name, meshes in exchanged.items()}),
    }
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
    write(folder, pictures, numbers)
    print(summary(numbers))
    print(f"pictures and latent.json in {folder}/")


def draw_bodies(config: DictConfig, body: BodyModel) -> dict:
    """Pose (P, J, 3), shape (P, S) and gender ((P,) names or None) of the first bodies of the data's test split."""
    size = "test_meshes" if "test_meshes" in config.data else "test_frames"
    batches = list(build(config.data, **{size: config.bodies})(body=body).test_dataloader())
    columns = {name: torch.cat([batch[name] for batch in batches])[: config.bodies] for name in batches[0]}
    if len(columns["pose"]) < 2:
        raise InputError("at least two bodies are needed, but the data's test split has fewer.")
    genders = [GENDERS[i] for i in columns["gender"].tolist()] if "gender" in columns else None
    return {"pose": columns["pose"], "shape": columns.get("shape", columns.get("betas")), "gender": genders}


@torch.no_grad()
def make_quadruples(body: BodyModel, bodies: dict, device: torch.device) -> Tensor:
    """(P // 2, 2, 2, V, 3): [p, i, j] has the pose of body i and the shape, with its gender, of body j of pair p."""
    made = []
    for p in range(len(bodies["pose"]) // 2):
        poses, shapes = (bodies[name][2 * p : 2 * p + 2].to(device) for name in ("pose", "shape"))
        gender = {} if bodies["gender"] is None else {"gender": bodies["gender"][2 * p : 2 * p + 2] * 2}
        made.append(body(poses.repeat_interleave(2, dim=0), shapes.repeat(2, 1), **gender).unflatten(0, (2, 2)))
    return torch.stack(made)


def draw_row(bodies: list[tuple[Tensor, np.ndarray, str]], faces: np.ndarray, turn: float = 25) -> list:
    """Cells of a panel, of canonical meshes (V, 3), colours (3,) or (V, 3), and captions.

    All stand on one floor at the same scale, turned by `turn` degrees about the vertical axis.
    """
    angle = np.deg2rad(turn)
    rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]], np.float32)
    turned = [vertices.cpu().numpy() @ rotation.T for vertices, _, _ in bodies]
    low, high = (np.stack([limit(vertices, axis=0) for vertices in turned]) for limit in (np.min, np.max))
    metres = 1.06 * (high - low)[:, 1].max()  # height of a picture
    focal = HEIGHT / metres * _FAR
    width = round(HEIGHT * max(0.45, 1.1 * (high - low)[:, 0].max() / metres))
    cells = []
    for i, (_, color, caption) in enumerate(bodies):
        x, y, z = (turned[i] - [(low + high)[i, 0] / 2, low[i, 1], 0]).T
        seen = np.stack([x, 0.97 * metres - y, _FAR - z], axis=1).astype(np.float32)  # the floor near the lower edge
        colors = np.broadcast_to(color, seen.shape).astype(np.float32)
        paper = np.full((HEIGHT, width, 3), 255, np.uint8)
        seen[:, 1] -= metres / 2  # the camera is level with the middle of the picture
        cells.append((draw_people(paper, seen[None], faces, focal, (width / 2, HEIGHT / 2), colors[None]), caption))
    return cells


def draw_interpolation(between: Tensor, a: Tensor, b: Tensor, faces: np.ndarray) -> np.ndarray:
    """Decoded meshes (T, V, 3) over the linear interpolation of the vertices of `a` and `b` (V, 3)."""
    rows, shares = [], np.linspace(0, 1, len(between))
    straight = [torch.lerp(a, b, float(t)) for t in shares]
    for meshes, name in ((between, "latents"), (straight, "vertices")):
        captions = [f"{name}: A", *(f"{100 * t:.0f} % B" for t in shares[1:-1]), "B"]
        colors = [(1 - t) * FROM_A + t * FROM_B for t in shares]
        rows.append(draw_row(list(zip(meshes, colors, captions, strict=True)), faces))
    return panel(rows)


def draw_tokens(tokenizer: MeshVQVAE, effects: np.ndarray, tokens: list[dict], shape_share: np.ndarray) -> np.ndarray:
    """Which token moves each vertex most, its properties, and the effect (V,) of the strongest token of each part.

    Args:
        effects: (N, V) m.
        tokens: N descriptions (`describe_effects`).
        shape_share: (N,) percent of a token's latent change that is due to shape.
    """
    template, faces = tokenizer.template, tokenizer.faces.cpu().numpy()
    leader = effects.argmax(0)  # (V,)
    by_token = PALETTE[colors_of_neighbours(leader, faces, len(effects), len(PALETTE))[leader]]
    by_part = PALETTE[[PARTS.index(tokens[n]["part"]) for n in leader]]
    most = 10 * np.ceil(np.quantile(shape_share, 0.9) / 10)
    by_share = heat_colors(shape_share[leader], most)
    maps = [
        (by_token, "token that moves it most"),
        (by_part, "its part"),
        (by_share, f"its share of shape, 0 to {most:.0f} %"),
    ]
    views = []
    for colors, caption in maps:
        for turn, side in ((0, "front"), (180, "back")):
            views += draw_row([(template, colors, f"{caption}, {side}")], faces, turn)
    strongest = [
        max((token for token in tokens if token["part"] == part), key=lambda token: token["mean_mm"])
        for part in PARTS
        if any(token["part"] == part for token in tokens)
    ]
    shown = [effects[token["token"]] for token in strongest]
    limit = round_limit(float(np.quantile(np.stack(shown).max(0), 0.95)))
    captions = [f"token {token['token']}: {token['part'].replace('_', ' ')}" for token in strongest]
    heat = [(template, heat_colors(effect, limit), text) for effect, text in zip(shown, captions, strict=True)]
    return panel([views, [*draw_row(heat, faces, 0), (color_bar(HEIGHT, limit), "")]])


def colors_of_neighbours(owner: np.ndarray, faces: np.ndarray, n_tokens: int, n_colors: int) -> np.ndarray:
    """Colour numbers (N,) of the tokens: different for adjacent tokens, and all used about equally often."""
    pairs = owner[faces[:, [0, 1, 1, 2, 2, 0]]].reshape(-1, 2)
    touch = np.zeros((n_tokens, n_tokens), bool)
    touch[pairs[:, 0], pairs[:, 1]] = touch[pairs[:, 1], pairs[:, 0]] = True
    colors, used = np.full(n_tokens, -1), np.zeros(n_colors, int)
    for n in range(n_tokens):
        taken = np.isin(np.arange(n_colors), colors[touch[n]])
        colors[n] = np.where(taken, n_tokens + 1, used).argmin()
        used[colors[n]] += 1
    return colors


def draw_exchange(tokenizer: MeshVQVAE, meshes: dict[str, Tensor]) -> np.ndarray:
    """The first pair of meshes {name: (P, V, 3)} of `exchange_pose_and_shape`, and A with parts of B."""
    a, b = meshes["a"], meshes["b"]
    row = [
        (a[0], FROM_A, "A"),
        (b[0], FROM_B, "B"),
        (meshes["truth"][0], EXCHANGED, "pose of A, shape of B"),
        (meshes["by_latents"][0], EXCHANGED, "by latents"),
        (meshes["by_tokens"][0], EXCHANGED, "half of B's tokens"),
    ]
    for parts, name in ((("left_arm", "right_arm"), "arms"), (("left_leg", "right_leg"), "legs")):
        row.append((swap_parts(tokenizer, a, b, parts)[0], EXCHANGED, f"A, tokens of B's {name}"))
    return panel([draw_row(row, tokenizer.faces.cpu().numpy())])


def write(folder: Path, pictures: dict[str, np.ndarray], numbers: dict) -> None:
    """latent.json, the pictures, and all of them in one, as wide as the widest."""
    width = max(picture.shape[1] for picture in pictures.values())
    sheet = np.concatenate(
        [
            cv2.resize(p, (width, round(len(p) * width / p.shape[1])), interpolation=cv2.INTER_CUBIC)
            for p in pictures.values()
        ]
    )
    files = {f"{name}.png": encode_png(picture) for name, picture in pictures.items()}
    files["latents.jpg"] = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    files["latent.json"] = (json.dumps(numbers, indent=2) + "\n").encode()
    write_together(folder, "latent", files)


def summary(numbers: dict) -> str:
    """The main numbers, one per line."""
    middle = len(numbers["interpolation"]["share_of_last"]) // 2
    changed, means = numbers["exchange"]["changed_tokens_percent"], numbers["token_means"]
    lines = [
        "limb lengths halfway between two bodies, off by: "
        f"{numbers['interpolation']['limb_error_percent'][middle]:.1f} % (latents), "
        f"{numbers['interpolation']['limb_error_percent_of_vertices'][middle]:.1f} % (vertices)",
        f"a token moves the surface by {means['mean_mm']:.1f} mm on average and {means['largest_mm']:.0f} mm at most, "
        f"{means['own_part_percent']:.0f} % of it on its own part of the body",
        f"tokens that change with the shape {changed['shape']:.0f} %, with the pose {changed['pose']:.0f} %, "
        f"with both {changed['both']:.0f} %",
        "shape of B in the pose of A, V2V in mm: "
        + ", ".join(f"{name} {value:.1f}" for name, value in numbers["exchange"]["V2V_mm_to_truth"].items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    analyse()
