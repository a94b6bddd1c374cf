"""BlazePose's encoder, the embedded backbone: small, quick on a CPU, and it has seen real people."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mega_common.device import has_bfloat16
from mega_common.weights_io import load_strictly, read_weights

WEIGHTS_FORMAT = "BlazePose"
_STEM = 24  # channels
# Of each block: channels it puts out, how many times its input's channels lie between, kernel, stride.
_BLOCKS = (
    (16, 1, 3, 1),
    (24, 4, 3, 2),
    (24, 6, 3, 1),
    (32, 6, 5, 2),
    (32, 6, 5, 1),
    (64, 6, 3, 2),
    (64, 6, 3, 1),
    (64, 6, 3, 1),
    (88, 6, 5, 1),
    (88, 6, 5, 1),
    (88, 6, 5, 1),
    (144, 6, 5, 2),
    (144, 6, 5, 1),
    (144, 6, 5, 1),
    (144, 6, 5, 1),
)
_EXPANSION = 6  # of the last block's channels in the features


class BlazePose(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> features (B, 864, H / 32, W / 32).

    Args:
        weights: start from this file (`python -m tools.convert_blazepose` makes it; one lies in
            `checkpoint/blazepose`), trained on the keypoints of real people; None for random weights.
        frozen_blocks: the stem and so many of the 15 blocks keep their weights in training: what they know of edges and
            limbs is not to be spoilt, and learning them too would double a training step's time.

    Attributes:
        mean, std: what images in [0, 1] are normalised by, a channel.
        out_channels: 864.

    Raises FileNotFoundError, or ValueError that names the file and what is wrong with it.

    Source: Bazarevsky et al., BlazePose, CVPR workshops 2020; here the encoder of MediaPipe's `pose_landmark_full`,
    inverted residual blocks (Sandler et al., MobileNetV2, CVPR 2018) whose batch norms are folded into the weights.
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
        self.head = _widening(channels, self.out_channels, 3)
        if weights is not None:
            load_strictly(self, read_weights(weights, WEIGHTS_FORMAT)[0], weights)
        # Depthwise convolutions on a CPU are about twice as fast on pixels whose channels lie side by side.
        self.to(memory_format=torch.channels_last)
        self.frozen_blocks = frozen_blocks
        for module in [self.stem, *self.blocks[:frozen_blocks]] if frozen_blocks else []:
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        if self.frozen_blocks:
            # While the rest learns, three digits are enough for what does not, and bfloat16 is several times faster
            # where the device has it. (Not with a gradient: that of a depthwise convolution is slow on a CPU.)
            rough = self.training and has_bfloat16(x.device.type)
            with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=rough):
                x = self.blocks[: self.frozen_blocks](self.stem(x)).to(images.dtype)
        else:
            x = self.stem(x)
        return self.head(self.blocks[self.frozen_blocks :](x))


class _Block(nn.Module):
    """Inverted residual: wide in between, and added to the input where the shapes allow."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        self.residual = channels == out and stride == 1
        self.wide = _widening(channels, channels * expansion, kernel, stride)
        self.project = _convolution(channels * expansion, out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.wide(x))
        return x + y if self.residual else y


def _widening(channels: int, wide: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """More channels, then a convolution of each by itself."""
    expand = [] if wide == channels else [_convolution(channels, wide), nn.ReLU6(inplace=True)]
    return nn.Sequential(*expand, _convolution(wide, wide, kernel, stride, groups=wide), nn.ReLU6(inplace=True))


def _convolution(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups)
