"""Time and memory of training at the published size, with made-up weights and files, next to the published
implementation (see timing.py).

    python benchmarks/training.py --template FILE [--repeats 5] [--only items tokenizer transformer]

The template is any mesh with SMPL's topology; SMPL-H files as large as the real ones are made from it, and images from
those in demo_data/. Each work runs in a process of its own.

    items        for training on images: 640 x 480 PNG read, cropped and augmented by one worker, SMPL-H meshes made per
                 batch. (The published implementation makes each mesh in its item.)
    tokenizer    a training step with 16 meshes: forward, backward, Adam.
    transformer  a training step of CVQMAE without backbone (205 M parameters, 49 image tokens of 720 channels, 16
                 people, half of 54 tokens masked): cross-entropy and rotation, AdamW.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
import trimesh
from hydra.utils import instantiate
from timing import Timing, machine, timed
from tokenizer import made_up_tokenizer, training_step
from torch import nn
from torch.utils.data import DataLoader

from mega.bodies.smplh import GENDERS, SMPLHBody
from mega.config import compose
from mega.data import SMPLImages
from mega.geometry import rot6d_to_matrix
from mega.model import CVQMAE, masked_cross_entropy
from mega.training.optimizer import ParameterGroup, adamw

ROOT = Path(__file__).resolve().parents[1]
BATCH, PEOPLE = 16, 192
#: Work: (name and number of the units in one call; seconds and peak GB of the published implementation per unit).
WORKS = {
    "items": ("item with mesh", PEOPLE, 0.196, None),
    "tokenizer": ("tokenizer step", 1, 4.86, 3.9),
    "transformer, fp32": ("transformer step, fp32", 1, 3.51, 4.6),
    "transformer, bf16": ("transformer step, bf16", 1, 3.51, 4.6),
}


def items(template: str, folder: Path) -> Callable[[], object]:
    """One epoch of images, batch by batch; the images are made in the folder."""
    write_made_up_body(folder, template)
    write_made_up_pictures(folder)
    config = compose("train_mega", ["experiment=mega_hrnet"])
    looks = {"augmentation": instantiate(config.data.augmentation), "flip_probability": config.data.flip_probability}
    images = SMPLImages(folder / "people.npz", config.crop.size, training=True, **looks)
    loader = DataLoader(images, config.data.batch_size, num_workers=1, persistent_workers=True)
    body = SMPLHBody(folder)

    def epoch() -> None:
        for batch in loader:
            body(batch["pose"], batch["betas"], [GENDERS[i] for i in batch["gender"].tolist()])

    return torch.no_grad()(epoch)


def write_made_up_body(folder: Path, template: str) -> None:
    """SMPL-H files of the real size, with the template's mesh and random blend shapes and weights."""
    rng = np.random.default_rng(0)
    mesh = trimesh.load(template, process=False)
    n, joints = len(mesh.vertices), 52
    arrays = {
        "v_template": np.asarray(mesh.vertices),
        "f": np.asarray(mesh.faces, np.uint32),
        "shapedirs": 0.01 * rng.standard_normal((n, 3, 16)),
        "posedirs": 1e-3 * rng.standard_normal((n, 3, 9 * (joints - 1))),
        "weights": rng.dirichlet(np.full(joints, 0.1), n),
        "J_regressor": rng.dirichlet(np.full(n, 0.01), joints),
        # A tree in which every joint has two children.
        "kintree_table": np.array([[2**32 - 1, *((j - 1) // 2 for j in range(1, joints))], range(joints)], np.uint32),
    }
    for gender in ("neutral", "m", "f"):
        (folder / "smplh" / gender).mkdir(parents=True)
        np.savez(folder / "smplh" / gender / "model.npz", **arrays)
    np.save(folder / "J_regressor_24.npy", arrays["J_regressor"][:24])
    np.save(folder / "J_regressor_h36m.npy", arrays["J_regressor"][:17])


def write_made_up_pictures(folder: Path) -> None:
    """The demo's images as 640 x 480 PNG, and made-up annotations of people in them."""
    rng = np.random.default_rng(0)
    names = []
    for path in sorted((ROOT / "demo_data").glob("*.jpg")):
        names.append(f"{path.stem}.png")
        cv2.imwrite(str(folder / names[-1]), cv2.resize(cv2.imread(str(path)), (640, 480)))
    np.savez(
        folder / "people.npz",
        imgname=[name for name, _ in zip(cycle(names), range(PEOPLE), strict=False)],
        center=rng.uniform((200, 160), (440, 320), (PEOPLE, 2)),
        scale=rng.uniform(1, 2, PEOPLE),
        pose_cam=0.3 * rng.standard_normal((PEOPLE, 72)),
        shape=rng.standard_normal((PEOPLE, 10)),
        part=rng.uniform(100, 400, (PEOPLE, 24, 3)),
        gender=rng.choice(["m", "f"], PEOPLE),
    )


def tokenizer_step(template: str) -> Callable[[], object]:
    model, mesh = made_up_tokenizer(template)
    return training_step(model, mesh.repeat(BATCH, 1, 1) + 0.01 * torch.randn(BATCH, 1, 3))


def transformer_step(precision: str) -> Callable[[], object]:
    torch.manual_seed(0)
    features, tokens = torch.randn(BATCH, 720, 7, 7), torch.randint(512, (BATCH, 54))
    masked = torch.rand(BATCH, 54).argsort(dim=1) < 27
    turned = rot6d_to_matrix(torch.randn(BATCH, 6))
    model = CVQMAE(nn.Identity(), cond_dim=720)
    group = ParameterGroup(list(model.parameters()))
    optimizer = adamw([group], lr=1e-3 * BATCH / 256, factor=lambda step, start: 1.0)["optimizer"]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(features, tokens, masked)
        rot6d, _ = model.rotcam(features)  # in float32, as in training
        rotation = (rot6d_to_matrix(rot6d) - turned).square().mean()
        (masked_cross_entropy(logits, tokens, masked) + rotation).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(name: str, template: str, repeats: int) -> Timing:
    """Run a work in this process."""
    with tempfile.TemporaryDirectory() as folder:
        match name.split(", "):
            case ["items"]:
                work = items(template, Path(folder))
            case ["tokenizer"]:
                work = tokenizer_step(template)
            case [_, precision]:
                work = transformer_step(precision)
        return timed(work, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    kinds = list(dict.fromkeys(name.split(", ")[0] for name in WORKS))
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args()

    print(machine())
    print(f"{'work':<26}{'ms':>8}{'published':>11}{'faster':>8}{'peak GB':>9}{'published':>11}{'2048³ ms':>10}")
    for name, (unit, count, published, published_peak) in WORKS.items():
        if name.split(", ")[0] not in options.only:
            continue
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            time = process.submit(measure, name, options.template, options.repeats).result()
        one, scaled = time.seconds / count, time.published(published)
        line = f"{unit:<26}{one * 1e3:>8.1f}{scaled * 1e3:>11.0f}{scaled / one:>7.1f}x{time.peak:>9.2f}"
        print(f"{line}{published_peak or '':>11}{time.product * 1e3:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
