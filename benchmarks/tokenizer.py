"""Time and memory of the published tokenizer (SMPL topology, 54 tokens), at full size with made-up weights.

    python benchmarks/tokenizer.py --template ../shared/connections_smpl/template.ply [--batch 1 16] [--repeats 7]

The template is any mesh with SMPL's topology. The column "products" is the ratio to the time of a 2048 x 2048 x 2048
float32 matrix product, so that machines can be compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import trimesh
from timing import machine, timed
from torch import Tensor

from mesh_vq_vae import SMPL_SEEDS, SMPL_STEPS, MeshVQVAE, build_hierarchy, vertex_error

LAYERS = {
    "connections": [*(f"pool{i}" for i in range(7)), *(f"unpool{i}" for i in reversed(range(7)))],
    "channels": [32, 32, 64, 64, 128, 128, 9, 128, 128, 64, 64, 32, 32, 3],
    "n_bases": [9, 0, 9, 0, 9, 0, 9, 9, 0, 9, 0, 9, 0, 9],
    "residual_rates": [0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0],
}


def made_up_tokenizer(template: str) -> tuple[MeshVQVAE, Tensor]:
    """The published tokenizer with made-up weights, and the centred vertices (V, 3) of the template."""
    torch.manual_seed(0)
    mesh = trimesh.load(template, process=False)
    hierarchy = build_hierarchy(mesh.faces, len(mesh.vertices), SMPL_STEPS, SMPL_SEEDS)
    centred = torch.tensor(mesh.vertices - mesh.vertices.mean(0), dtype=torch.float32)
    return MeshVQVAE(hierarchy, **LAYERS), centred


def training_step(model: MeshVQVAE, vertices: Tensor) -> Callable[[], None]:
    """A function that trains the tokenizer on vertices (B, V, 3) for one step, as published."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-5)

    def step() -> None:
        result = model.train()(vertices)
        (vertex_error(result.vertices, vertices).mean() + result.quantized.loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    model, template = made_up_tokenizer(options.template)
    print(machine())
    print(f"{'work':<26}{'batch':>6}{'ms':>9}{'products':>10}{'peak GB':>9}")
    for batch in options.batch:
        vertices = template.repeat(batch, 1, 1) + 0.01 * torch.randn(batch, 1, 3)
        tokens = model.eval().encode(vertices)
        works = {
            "encode": lambda vertices=vertices: model.encode(vertices),
            "decode": lambda tokens=tokens: model.decode(tokens),
            "encode + decode": lambda vertices=vertices: model.decode(model.encode(vertices)),
            "training step": training_step(model, vertices),
        }
        for name, work in works.items():
            seconds, product, peak = timed(work, options.repeats)
            print(f"{name:<26}{batch:>6}{seconds * 1e3:>9.1f}{seconds / product:>10.2f}{peak:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
