"""The figure docs/how_it_works.jpg: the tokens of a mesh appear over the steps of a draw.

    python tools/how_it_works_figure.py docs/how_it_works.jpg demo_data/astronaut.jpg [--steps 5] …

Each vertex has the colour of its token's code; vertices of masked tokens are grey.
"""

import argparse
import colorsys
from pathlib import Path

import cv2
import numpy as np
import torch

import mega
from mega.export import scale_to_draw
from mega.photos import read_picture
from mega.predictor import Predictor
from mega.rendering import draw_people, panel
from mega.sampling import sample
from mesh_vq_vae import MeshVQVAE

MASKED_COLOR = (0.62, 0.62, 0.64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("picture")
    parser.add_argument("--weights", default="anny_lite")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    predictor = mega.load(options.weights, device="cpu")
    image = read_picture(Path(options.picture))
    boxes = predictor.tighten(image, np.array([[0, 0, *image.shape[1::-1]]], float))
    people = predictor(image, boxes)
    picture, focal, centre = scale_to_draw(image, people, max_side=512)
    states = draw_states(predictor, image, boxes, options.steps, options.seed)

    owner = vertex_tokens(predictor.tokenizer)
    palette = code_colors(predictor.tokenizer.codebook_size)
    cells = [(picture, "picture")]
    for step in sorted({0, 1, options.steps // 2, options.steps}):
        tokens, masked = states[step]
        colors = np.where(masked[owner][:, None], MASKED_COLOR, palette[tokens[owner]])
        drawn = draw_people(picture, people.vertices, people.faces, focal, centre, colors[None])
        left = int(masked.sum())
        cells.append((drawn, f"step {step}: {left} of {len(tokens)} tokens masked"))
    cells.append((draw_people(picture, people.vertices, people.faces, focal, centre), "decoded"))
    cv2.imwrite(options.output, panel([cells])[..., ::-1])


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


def vertex_tokens(tokenizer: MeshVQVAE) -> np.ndarray:
    """(V,) the token nearest to each vertex, by steps along edges in each level of the decoder."""
    owner = np.arange(tokenizer.n_tokens)
    for name in tokenizer.config["connections"]:
        if name.startswith("unpool"):
            rows = tokenizer.hierarchy[name]
            hops = np.where(rows[:, 2::2] < 0, np.iinfo(np.int32).max, rows[:, 2::2])
            nearest = np.take_along_axis(rows[:, 1::2], hops.argmin(1)[:, None], axis=1)[:, 0]
            owner = owner[nearest]
    return owner


def code_colors(n_codes: int) -> np.ndarray:
    """(K, 3) a colour for each code; those of neighbouring numbers differ."""
    golden = 0.618
    return np.array([colorsys.hsv_to_rgb(k * golden % 1, 0.45 + 0.3 * (k % 3) / 2, 0.9) for k in range(n_codes)])


if __name__ == "__main__":
    main()
