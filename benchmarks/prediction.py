"""Time and memory of prediction at the published size (HRNet-W48, 12 + 4 blocks of 1024 channels, 54 tokens), with
made-up weights, beside the published implementation.

    python benchmarks/prediction.py [--repeats 5] [--precision bf16 fp32]

The tokenizer, which decodes what is predicted here, is measured by benchmarks/tokenizer.py.

The published implementation was timed on a quiet machine on which a 2048 x 2048 x 2048 float32 matrix product takes
0.048 s. Its times are scaled to this run by that product, timed in turn with every work, so that other programs on the
machine slow both alike. Peak memory is the process's up to that row; the precisions go from small to large.

Agreement is the share of tokens to which bf16 and fp32 give the same code. The head's made-up weights are large enough
to spread a token's 512 logits like normal numbers of standard deviation 2, about as doubtful as a trained model (an
entropy of 4 instead of 6.2 nats). The largest then leads the next by a third of a deviation in the mean; the scale does
not matter for the agreement, the lead in deviations does.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from mega.backbones import HRNetW48
from mega.model import CVQMAE
from mega.optimize import PRECISIONS, speed_up
from mega.sampling import sample

BATCH, SAMPLES, STEPS = 16, 25, 5
# Seconds and peak GB of the published implementation, float32, 2 threads, torch 2.14.1, made-up weights of this size.
# Source: the published implementation, measured on 2026-11-22 on 2 cores of an AMD EPYC. It puts 25 copies of the
# picture through the backbone.
PUBLISHED = {
    f"transformer, {BATCH} people, all hidden": (0.68, 1.8),
    f"transformer, {BATCH} people, half hidden": (1.10, 1.8),
    f"{SAMPLES} samples of one picture": (10.8, 4.0),
}
PUBLISHED_PRODUCT = 0.048  # s


def timed(work: Callable[[], object], matrix: Tensor, repeats: int) -> tuple[float, float]:
    """Median seconds of `work` and of a product of the matrix, in turn, after a run that does not count."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        work()
        middle = time.perf_counter()
        matrix @ matrix
        times.append((middle - start, time.perf_counter() - middle))
    return tuple(map(median, zip(*times[1:], strict=True)))


def made_up_model(precision: str) -> CVQMAE:
    torch.manual_seed(0)
    model = CVQMAE(HRNetW48()).eval()
    nn.init.normal_(model.decoder.head.weight, std=0.05)
    return speed_up(model.to(memory_format=torch.channels_last), precision)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["bf16", "fp32"])
    options = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(BATCH, HRNetW48.out_channels, 7, 7, generator=generator)
    tokens = torch.randint(512, (BATCH, 54), generator=generator)
    half = torch.rand(BATCH, 54, generator=generator).argsort(dim=1) < 27
    image = torch.randn(1, 3, 224, 224, generator=generator).to(memory_format=torch.channels_last)
    matrix = torch.randn(2048, 2048, generator=generator)

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'work':<36}{'precision':>10}{'ms':>8}{'published':>11}{'faster':>8}{'peak GB':>9}{'published':>11}")
    chosen = {}
    for precision in options.precision:
        model = made_up_model(precision)
        works = (
            lambda model=model: model(features, tokens, torch.ones_like(half)),
            lambda model=model: model(features, tokens, half),
            lambda model=model: sample(model, model.features(image), SAMPLES, STEPS, generator=generator),
        )
        for (name, (published, published_peak)), work in zip(PUBLISHED.items(), works, strict=True):
            seconds, product = timed(work, matrix, options.repeats)
            scaled = published * product / PUBLISHED_PRODUCT
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            line = f"{name:<36}{precision:>10}{seconds * 1e3:>8.0f}{scaled * 1e3:>11.0f}{scaled / seconds:>7.2f}x"
            print(f"{line}{peak:>9.2f}{published_peak:>11.1f}", flush=True)
        chosen[precision] = torch.stack([work().argmax(dim=-1) for work in works[:2]])
        del model, work, works  # before the next one is built
    if len(chosen) == 2:
        whole, part = (chosen["bf16"] == chosen["fp32"]).float().mean(dim=(1, 2)).tolist()
        print(f"agreement of bf16 with fp32: {whole:.1%} with all hidden, {part:.1%} with half hidden")


if __name__ == "__main__":
    main()
