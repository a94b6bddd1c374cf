"""The figures of the documentation.

python tools/figures.py results docs/results.jpg demo_out/astronaut_overlay.png …        overlays of the demo
python tools/figures.py how_it_works docs/how_it_works.jpg demo_data/astronaut.jpg       tokens appear step by step
python tools/figures.py poses docs/poses.png                                             random poses
"""

import argparse
import colorsys
from pathlib import Path

import cv2
import numpy as np
import roma
import torch

import mega
from mega.bodies import AnnyBody, PoseSampler
from mega.bodies.parts import vertex_tokens
from mega.export import scale_to_draw
from mega.photos import InputError, read_picture
from mega.predictor import Predictor
from mega.rendering import draw_body, draw_people, panel
from mega.sampling import sample

WIDTH = 1280  # px, of the results
TILE_HEIGHT = 120  # px, of a pose
MASKED_COLOR = (0.62, 0.62, 0.64)
CLAY = (0.72, 0.66, 0.60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(required=True)
    results = figures.add_parser("results", help="overlays of the demo, one below the other")
    results.add_argument("output", type=Path)
    results.add_argument("overlays", type=Path, nargs="+", help="written by demo.py: run it first")
    results.set_defaults(draw=draw_results)
    steps = figures.add_parser("how_it_works", help="the tokens of a mesh appear over the steps of a draw")
    steps.add_argument("output", type=Path)
    steps.add_argument("picture", type=Path)
    steps.add_argument("--weights", default="anny_lite")
    steps.add_argument("--steps", type=int, default=5)
    steps.add_argument("--seed", type=int, default=0)
    steps.set_defaults(draw=draw_how_it_works)
    poses = figures.add_parser("poses", help="random poses, to judge the pose sampler by eye")
    poses.add_argument("output", type=Path)
    poses.add_argument("--poses", type=int, default=64)
    poses.add_argument("--columns", type=int, default=16)
    poses.add_argument("--seed", type=int, default=0)
    poses.set_defaults(draw=draw_poses)
    options = vars(parser.parse_args())

    output, draw = options.pop("output"), options.pop("draw")
    try:
        picture = draw(**options)
    except InputError as error:
        parser.error(str(error))
    output.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(output), picture[..., ::-1]):
        raise OSError(f"{output} could not be written: is the extension one of .png, .jpg?")


def draw_results(overlays: list[Path]) -> np.ndarray:
    """Pictures one below the other, all of the same width."""
    pictures = [read_picture(path) for path in overlays]
    sizes = [(WIDTH, round(p.shape[0] * WIDTH / p.shape[1])) for p in pictures]
    scaled = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p, size in zip(pictures, sizes, strict=True)]
    return np.concatenate(scaled)


def draw_how_it_works(picture: Path, weights: str, steps: int, seed: int) -> np.ndarray:
    """Each vertex has the colour of its token's code; vertices of masked tokens are grey."""
    predictor = mega.load(weights, device="cpu")
    image = read_picture(picture)
    boxes = predictor.tighten(image, np.array([[0, 0, *image.shape[1::-1]]], float))
    people = predictor(image, boxes)
    scaled, focal, centre = scale_to_draw(image, people, max_side=512)
    states = draw_states(predictor, image, boxes, steps, seed)

    owner = vertex_tokens(predictor.tokenizer).numpy()
    palette = code_colors(predictor.tokenizer.codebook_size)
    cells = [(scaled, "picture")]
    for step in sorted({0, 1, steps // 2, steps}):
        tokens, masked = states[step]
        colors = np.where(masked[owner][:, None], MASKED_COLOR, palette[tokens[owner]])
        drawn = draw_people(scaled, people.vertices, people.faces, focal, centre, colors[None])
        cells.append((drawn, f"step {step}: {masked.sum()} of {len(tokens)} tokens masked"))
    cells.append((draw_people(scaled, people.vertices, people.faces, focal, centre), "decoded"))
    return panel([cells])


def draw_states(predictor: Predictor, image: np.ndarray, boxes: np.ndarray, steps: int, seed: int) -> list:
    """(tokens (N,), masked (N,)) of the first person, before the first step of one draw and after each."""
    n_tokens = predictor.tokenizer.n_tokens
    states = [(np.zeros(n_tokens, int), np.ones(n_tokens, bool))]
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        features = predictor.predict(predictor.crops(image, boxes)).features

        def watch(tokens: torch.Tensor, masked: torch.Tensor) -> None:
            states.append((tokens[0, 0].numpy().copy(), masked[0, 0].numpy().copy()))

        sample(predictor.model, features, n_samples=1, steps=steps, generator=generator, watch=watch)
    return states


def code_colors(n_codes: int) -> np.ndarray:
    """(K, 3) a colour for each code; those of neighbouring numbers differ."""
    golden = 0.618
    return np.array([colorsys.hsv_to_rgb(k * golden % 1, 0.45 + 0.3 * (k % 3) / 2, 0.9) for k in range(n_codes)])


def draw_poses(poses: int, columns: int, seed: int) -> np.ndarray:
    """Random bodies in random poses, each seen from a random side, mostly from the front."""
    generator = torch.Generator().manual_seed(seed)
    body = AnnyBody()
    vertices = body(PoseSampler(body).sample(poses, generator), body.sample_shapes(poses, generator))
    yaw = torch.zeros(poses, 3)
    yaw[:, 1] = torch.pi * (torch.rand(poses, generator=generator) - 0.5)
    turned = (vertices @ roma.rotvec_to_rotmat(yaw).mT).numpy()
    tiles = [(draw_body(v, body.faces.numpy(), TILE_HEIGHT, np.array([CLAY])), "") for v in turned]
    return panel([tiles[i : i + columns] for i in range(0, poses, columns)])


if __name__ == "__main__":
    main()
