"""Time and memory of prediction at the published size (HRNet-W48, 12 + 4 blocks of 1024 channels, 54 tokens), with
made-up weights, next to the published implementation (see timing.py).

    python benchmarks/prediction.py [--repeats 5] [--precision bf16 fp32]

Peak memory is that of the process up to this row; the precisions go from small to large. The tokenizer is measured by
benchmarks/tokenizer.py.

Agreement is the share of tokens for which bf16 and fp32 give the same code. The weights of the head are large enough to
spread a token's 512 logits like normal numbers with standard deviation 2, which makes the model about as uncertain as a
trained one (an entropy of 4 instead of 6.2 nats).
"""

from __future__ import annotations

import argparse

import torch
from timing import machine, timed
from torch import nn

from mega.backbones import HRNetW48
from mega.model import CVQMAE
from mega.optimize import optimize_for_inference
from mega.sampling import sample
from mega_common.device import PRECISIONS

BATCH, SAMPLES, STEPS = 16, 25, 5
# Seconds and peak GB of the published implementation, which puts 25 copies of the image through the backbone.
PUBLISHED = {
    f"transformer, {BATCH} people, all masked": (0.68, 1.8),
    f"transformer, {BATCH} people, half masked": (1.10, 1.8),
    f"{SAMPLES} samples of one picture": (10.8, 4.0),
}


def made_up_model(precision: str) -> CVQMAE:
    torch.manual_seed(0)
    model = CVQMAE(HRNetW48()).eval()
    nn.init.normal_(model.decoder.head.weight, std=0.05)
    return optimize_for_inference(model.to(memory_format=torch.channels_last), precision)


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
    image = 255 * torch.rand(1, 3, 224, 224, generator=generator).to(memory_format=torch.channels_last)

    print(machine())
    print(f"{'work':<36}{'precision':>10}{'ms':>8}{'published':>11}{'faster':>8}{'peak GB':>9}{'published':>11}")
    codes = {}
    for precision in options.precision:
        model = made_up_model(precision)
        works = (
            lambda model=model: model(features, tokens, torch.ones_like(half)),
            lambda model=model: model(features, tokens, half),
            lambda model=model: sample(model, model.features(image), SAMPLES, STEPS, generator=generator),
        )
        for (name, (published, published_peak)), work in zip(PUBLISHED.items(), works, strict=True):
            time = timed(work, options.repeats)
            scaled = time.published(published)
            line = f"{name:<36}{precision:>10}{time.seconds * 1e3:>8.0f}{scaled * 1e3:>11.0f}"
            print(f"{line}{scaled / time.seconds:>7.2f}x{time.peak:>9.2f}{published_peak:>11.1f}", flush=True)
        codes[precision] = torch.stack([work().argmax(dim=-1) for work in works[:2]])
        del model, work, works  # before the next one is built
    if len(codes) == 2:
        whole, part = (codes["bf16"] == codes["fp32"]).float().mean(dim=(1, 2)).tolist()
        print(f"agreement of bf16 with fp32: {whole:.1%} with all tokens masked, {part:.1%} with half of them masked")


if __name__ == "__main__":
    main()
