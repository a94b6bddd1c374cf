"""BlazePose's encoder, the embedded backbone: small, fast on a CPU, and trained on real people."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mega.backbones.frozen import run_stages
from mega_common.weights_io import load_strictly, read_weights

WEIGHTS_FORMAT = "BlazePose"
_STEM = 24  # channels
# For each block: output channels, expansion of the input channels in between, kernel, stride.
_BLOCKS = (
    (16, 1, 3, 1),
    (24, 4, 3, 2),
    (24, 6, 3, 1),
    (32, 6, 5, 2),
    (32, 6, 5, 1),
    (64, 6, 3, 2),
    *((64, 6, 3, 1),) * 2,
    *((88, 6, 5, 1),) * 3,
    (144, 6, 5, 2),
    *((144, 6, 5, 1),) * 3,
)
_EXPANSION = 6  # of the last block's channels in the features


class BlazePose(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> features (B, 864, H / 32, W / 32).

    Args:
        weights: a file made by `python -m tools.convert_blazepose` (there is one in `checkpoint/blazepose`), trained on
            keypoints of real people; None for random weights.
        frozen_blocks: the stem and this many of the 15 blocks are not trained. They know edges and limbs already, and
            training them would double the time of a step.

    Raises FileNotFoundError, or ValueError that names the file and what is wrong with it.

    Source: Bazarevsky et al., BlazePose, CVPR workshops 2020: the encoder of MediaPipe's `pose_landmark_full`, inverted
    residual blocks (Sandler et al., MobileNetV2, CVPR 2018) with batch norms folded into the weights.
    """

    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    out_channels = _EXPANSION * _BLOCKS[-1][0]

    def __init__(self, weights: str | Path | None = None, frozen_blocks: int = 0):
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, _STEM, 3, stride=2), nn.ReLU6(inplace=True))
        blocks, channels = [], _STEM
        for out, expansion, kernel, stride in _BLOCKS:
            blocks.append(_Block(channels, out, expansion, kernel, stride))
            channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _expand(channels, self.out_channels, 3)
        if weights is not None:
            load_strictly(self, read_weights(weights, WEIGHTS_FORMAT)[0], weights)
        self.to(memory_format=torch.channels_last)
        self.frozen_blocks = frozen_blocks
        if frozen_blocks:
            self.stem.requires_grad_(False)
            self.blocks[:frozen_blocks].requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(run_stages(self.stem, self.blocks, self.frozen_blocks, images))


class _Block(nn.Module):
    """Inverted residual block: more channels in between; the input is added where the shapes allow."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        self.residual = channels == out and stride == 1
        self.wide = _expand(channels, channels * expansion, kernel, stride)
        self.project = _convolution(channels * expansion, out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.wide(x))
        return x + y if self.residual else y


def _expand(channels: int, wide: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """More channels, then a depthwise convolution."""
    expand = [] if wide == channels else [_convolution(channels, wide), nn.ReLU6(inplace=True)]
    return nn.Sequential(*expand, _convolution(wide, wide, kernel, stride, groups=wide), nn.ReLU6(inplace=True))


def _convolution(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups)
