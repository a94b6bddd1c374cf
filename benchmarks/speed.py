"""Time and memory at the published size, with made-up weights and files, next to the published implementation.

    python benchmarks/speed.py --template FILE [--only tokenizer items transformer prediction pictures] [--repeats 5]
                               [--batch 1 16] [--precision bf16 fp32]

    tokenizer    the 54-token tokenizer on `--batch` meshes: encode, decode, and a training step with forward, backward
                 and Adam.
    items        for training on images: 640 x 480 PNG read, cropped and augmented by one worker, SMPL-H meshes made per
                 batch. (The published implementation makes each mesh in its item.)
    transformer  a training step of CVQMAE without backbone (205 M parameters, 49 image tokens of 720 channels, 16
                 people, half of 54 tokens masked): cross-entropy and rotation, AdamW.
    prediction   CVQMAE with HRNet-W48 (12 + 4 blocks of 1024 channels), in inference; then the agreement of bf16 with
                 fp32: the share of tokens with the same code. The weights of the head are large enough to spread a
                 token's 512 logits like normal numbers with standard deviation 2, which makes the model about as
                 uncertain as a trained one (an entropy of 4 instead of 6.2 nats).
    pictures     all that demo.py does for one person in a picture without boxes, with the shipped weights: a picture of
                 demo_data/ as it is (0.3 megapixels), and as JPEG of up to 200 megapixels.

The template, which `tokenizer` and `items` need, is any mesh with SMPL's topology; SMPL-H files as large as the real
ones are made from it, and images from those in demo_data/.

Each of them runs in a process of its own, and peak memory is that of this process up to the row. Times are medians.
So that they are comparable between machines and while other programs run, a 2048 x 2048 x 2048 float32 matrix product
is timed in turn with the work: the column "products" is the ratio of the two. The published implementation was timed on
a quiet machine on which the product takes 0.048 s (2026-11-22, 2 cores of an AMD EPYC, torch 2.14.1, float32, made-up
weights of the same size); its times are scaled by the product measured here.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import cv2
import numpy as np
import torch
import trimesh
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import mega
from mega.backbones import HRNetW48
from mega.bodies.smplh import GENDERS, SMPLHBody
from mega.config import build, compose
from mega.data import SMPLImages
from mega.detectors import WholeImage
from mega.export import draw_sheet, encode_results
from mega.geometry import rot6d_to_matrix
from mega.model import CVQMAE, masked_cross_entropy
from mega.optimize import optimize_for_inference
from mega.photos import open_picture
from mega.sampling import sample
from mega_common.device import PRECISIONS
from mesh_vq_vae import vertex_error

ROOT = Path(__file__).resolve().parents[1]
BATCH, PEOPLE, SAMPLES, STEPS = 16, 192, 25, 5
PUBLISHED_PRODUCT = 0.048  # s
#: Seconds and peak GB of the published implementation, which puts 25 copies of the image through the backbone.
PUBLISHED = {
    "training step, 16 meshes": (4.86, 3.9),
    "item with mesh": (0.196, None),
    "transformer step": (3.51, 4.6),
    f"{BATCH} people, all masked": (0.68, 1.8),
    f"{BATCH} people, half masked": (1.10, 1.8),
    f"{SAMPLES} samples of one picture": (10.8, 4.0),
}

#: Name, precision, a call that does the work, and how many units of it that does.
Work = tuple[str, str, Callable[[], object], int]


def tokenizer(options: argparse.Namespace) -> Iterator[Work]:
    mesh = trimesh.load(options.template, process=False)
    template = torch.tensor(mesh.vertices - mesh.vertices.mean(0), dtype=torch.float32)
    body = SimpleNamespace(faces=torch.tensor(mesh.faces), template=template, keypoint_regressor=torch.zeros(24, 6890))
    model = build(compose("train_mesh_vqvae", ["experiment=mesh_vqvae_54"]).tokenizer)(body=body)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-5)

    def reconstruct(vertices: torch.Tensor) -> torch.Tensor:
        return model.decode(model.encode(vertices))

    def training_step(vertices: torch.Tensor) -> None:
        result = model.train()(vertices)
        (vertex_error(result.vertices, vertices).mean() + result.quantized.loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    for batch in options.batch:
        vertices = template.repeat(batch, 1, 1) + 0.01 * torch.randn(batch, 1, 3)
        tokens = model.eval().encode(vertices)
        yield f"encode, {batch} meshes", "fp32", partial(model.encode, vertices), 1
        yield f"decode, {batch} meshes", "fp32", partial(model.decode, tokens), 1
        yield f"encode + decode, {batch} meshes", "fp32", partial(reconstruct, vertices), 1
        yield f"training step, {batch} meshes", "fp32", partial(training_step, vertices), 1


def items(options: argparse.Namespace) -> Iterator[Work]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_made_up_body(folder, options.template)
        write_made_up_pictures(folder)
        config = compose("train_mega", ["experiment=mega_hrnet"])
        looks = {"augmentation": build(config.data.augmentation), "flip_probability": config.data.flip_probability}
        images = SMPLImages(folder / "people.npz", config.crop.size, training=True, **looks)
        loader = DataLoader(images, config.data.batch_size, num_workers=1, persistent_workers=True)
        body = SMPLHBody(folder)

        @torch.no_grad()
        def epoch() -> None:
            for batch in loader:
                body(batch["pose"], batch["betas"], [GENDERS[i] for i in batch["gender"].tolist()])

        yield "item with mesh", "fp32", epoch, PEOPLE


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


def transformer(options: argparse.Namespace) -> Iterator[Work]:
    features, tokens = torch.randn(BATCH, 720, 7, 7), torch.randint(512, (BATCH, 54))
    masked = torch.rand(BATCH, 54).argsort(dim=1) < 27
    turned = rot6d_to_matrix(torch.randn(BATCH, 6))
    model = CVQMAE(nn.Identity(), cond_dim=720)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 * BATCH / 256, betas=(0.9, 0.95), weight_decay=0.05)

    def step(precision: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(features, tokens, masked)
        rot6d, _ = model.rotcam(features)  # in float32, as in training
        rotation = (rot6d_to_matrix(rot6d) - turned).square().mean()
        (masked_cross_entropy(logits, tokens, masked) + rotation).backward()
        optimizer.step()
        optimizer.zero_grad()

    for precision in options.precision:
        yield "transformer step", precision, partial(step, precision), 1


def prediction(options: argparse.Namespace) -> Iterator[Work]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(BATCH, HRNetW48.out_channels, 7, 7, generator=generator)
    tokens = torch.randint(512, (BATCH, 54), generator=generator)
    masks = {"all": torch.ones(BATCH, 54).bool(), "half": torch.rand(BATCH, 54, generator=generator).argsort(1) < 27}
    image = 255 * torch.rand(1, 3, 224, 224, generator=generator).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(model: CVQMAE, mask: torch.Tensor) -> torch.Tensor:
        return model(features, tokens, mask)

    @torch.inference_mode()
    def draw_samples(model: CVQMAE) -> None:
        sample(model, model.features(image), SAMPLES, STEPS, generator=generator)

    codes = {}
    for precision in options.precision:
        torch.manual_seed(0)
        model = CVQMAE(HRNetW48()).eval()
        nn.init.normal_(model.decoder.head.weight, std=0.05)
        model = optimize_for_inference(model.to(memory_format=torch.channels_last), precision)
        for share, mask in masks.items():
            yield f"{BATCH} people, {share} masked", precision, partial(predict, model, mask), 1
            codes[precision, share] = predict(model, mask).argmax(dim=-1)
        yield f"{SAMPLES} samples of one picture", precision, partial(draw_samples, model), 1
        del model  # before the next one is built
    if {"bf16", "fp32"} <= set(options.precision):
        for share in masks:
            same = (codes["bf16", share] == codes["fp32", share]).float().mean()
            print(f"agreement of bf16 with fp32, {share} of the tokens masked: {same:.1%}")


def pictures(options: argparse.Namespace) -> Iterator[Work]:
    predictor = mega.load("anny_lite", device="cpu")

    def predict(path: Path) -> None:
        picture = open_picture(path)
        boxes = WholeImage()(path, picture).boxes
        people = predictor(picture, predictor.tighten(picture, boxes, passes=2))
        encode_results("person", people, draw_sheet(picture, people))

    source = ROOT / "demo_data/synthetic_walking.jpg"
    yield "picture of 0.3 megapixels", "fp32", partial(predict, source), 1
    with tempfile.TemporaryDirectory() as folder:
        for width, height in ((4032, 3024), (8064, 6048), (12000, 9000), (16320, 12240)):
            path = Path(folder, f"{width}.jpg")
            # In a process of its own, whose memory does not count.
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                process.submit(enlarge, source, path, (width, height)).result()
            yield f"picture of {width * height / 1e6:.0f} megapixels", "fp32", partial(predict, path), 1


def enlarge(source: Path, path: Path, size: tuple[int, int]) -> None:
    Image.open(source).resize(size).save(path, quality=70)


PARTS = {
    "tokenizer": tokenizer,
    "items": items,
    "transformer": transformer,
    "prediction": prediction,
    "pictures": pictures,
}


def measure(part: str, options: argparse.Namespace) -> None:
    """Run a part in this process and print a line for each work."""
    torch.manual_seed(0)
    matrix = torch.randn(2048, 2048)
    for name, precision, work, count in PARTS[part](options):
        times = []
        for _ in range(1 + options.repeats):  # the first to warm up
            start = time.perf_counter()
            work()
            middle = time.perf_counter()
            matrix @ matrix
            times.append((middle - start, time.perf_counter() - middle))
        seconds, product = (median(column) for column in zip(*times[1:], strict=True))
        seconds /= count
        peak = peak_gigabytes()
        line = f"{name:<28}{precision:>10}{seconds * 1e3:>9.1f}{product * 1e3:>10.0f}{seconds / product:>10.2f}"
        line += f"{peak:>9.2f}"
        if name in PUBLISHED:
            published, published_peak = PUBLISHED[name]
            published *= product / PUBLISHED_PRODUCT
            line += f"{published * 1e3:>14.0f}{published / seconds:>8.1f}x{published_peak or '':>10}"
        print(line, flush=True)
        del work  # its model, before the next one is built


def peak_gigabytes() -> float:
    """The most memory that this process has held; NaN on Windows, where Python does not say."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return math.nan
    return getrusage(RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["bf16", "fp32"])
    options = parser.parse_args()
    if options.template is None and {"tokenizer", "items"} & set(options.only):
        parser.error("tokenizer and items need --template FILE")

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    columns = f"{'work':<28}{'precision':>10}{'ms':>9}{'2048³ ms':>10}{'products':>10}{'peak GB':>9}"
    print(f"{columns}{'published ms':>14}{'faster':>9}{'peak GB':>10}")
    for part in options.only:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            process.submit(measure, part, options).result()


if __name__ == "__main__":
    main()
