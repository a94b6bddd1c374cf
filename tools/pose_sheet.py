"""Draw many random poses in one image, to judge the pose sampler by eye.

python tools/pose_sheet.py docs/poses.png
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from mega.bodies import AnnyBody, PoseSampler
from mega.rendering import draw_people

TILE = (120, 150)  # width, height, px
_BACKDROP = (238, 240, 243)
_CLAY = (0.72, 0.66, 0.60)


def draw_contact_sheet(n: int = 64, columns: int = 16, seed: int = 0) -> np.ndarray:
    """n random bodies in random poses, each seen from a random side: (h, w, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    body = AnnyBody()
    sampler = PoseSampler(body)
    vertices = body(sampler.sample(n, generator), body.sample_shapes(n, generator))
    yaw = np.pi * (torch.rand(n, generator=generator).numpy() - 0.5)  # mostly from the front
    faces = body.faces.numpy()
    tiles = [_draw_tile(v, faces, angle) for v, angle in zip(vertices.numpy(), yaw, strict=True)]
    blank = np.full_like(tiles[0], _BACKDROP)
    tiles += [blank] * (-n % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)


def _draw_tile(canonical: np.ndarray, faces: np.ndarray, yaw: float) -> np.ndarray:
    width, height = TILE
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    upright = canonical @ turn.T * [1, -1, -1]
    upright -= (upright.max(axis=0) + upright.min(axis=0)) / 2
    extent = np.ptp(upright, axis=0)
    field = max(extent[1], extent[0] * height / width, 1.3) * 1.12  # metres from the tile's top to its bottom
    distance = 8.0
    vertices = (upright + np.array([0, 0, distance])).astype(np.float32)
    backdrop = np.full((height, width, 3), _BACKDROP, np.uint8)
    focal, center = height * distance / field, np.array([width / 2, height / 2])
    return draw_people(backdrop, vertices[None], faces, focal, center, colors=np.array([_CLAY], np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="picture to write")
    parser.add_argument("--poses", type=int, default=64)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sheet = draw_contact_sheet(arguments.poses, arguments.columns, arguments.seed)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(arguments.output), sheet[..., ::-1]):
        raise OSError(f"{arguments.output} could not be written: is the extension one of .png, .jpg?")


if __name__ == "__main__":
    main()
