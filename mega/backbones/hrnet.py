"""HRNet-W48 with its four branches brought to one grid, under the released names."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

_N_KEYPOINTS = 24  # channels of the pose head, which is loaded but not used
_CHANNELS = (48, 96, 192, 384)  # of the branches, finest first


class HRNetW48(nn.Module):
    """Images (B, 3, H, W), normalised by `mean` and `std`, -> features (B, 720, H / 32, W / 32).

    The network is timm's, whose names are those of `pose_hrnet_w48.pth`. Strided convolutions bring the three finer
    branches to the grid of the coarsest, and all four are laid side by side.

    Attributes:
        mean, std: what images in [0, 1] are normalised by, a channel.
        out_channels: 720.

    Source: Wang et al., Deep High-Resolution Representation Learning for Visual Recognition, TPAMI 2020.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    out_channels = sum(_CHANNELS)

    def __init__(self):
        super().__init__()
        net = timm.create_model("hrnet_w48", pretrained=False, features_only=True, feature_location="")
        for name, module in net.named_children():
            self.add_module(name, module)
        self.final_layer = nn.Conv2d(_CHANNELS[0], _N_KEYPOINTS, 1)
        self.downsample_stage_1 = _downsample(_CHANNELS[0], steps=3)
        self.downsample_stage_2 = _downsample(_CHANNELS[1], steps=2)
        self.downsample_stage_3 = _downsample(_CHANNELS[2], steps=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(images)))
        x = self.layer1(self.act2(self.bn2(self.conv2(x))))  # (B, 256, H / 4, W / 4)
        branches = self.stage2([transition(x) for transition in self.transition1])
        branches = self.stage3(_branch_off(branches, self.transition2))
        branches = self.stage4(_branch_off(branches, self.transition3))
        downsample = (self.downsample_stage_1, self.downsample_stage_2, self.downsample_stage_3, nn.Identity())
        return torch.cat([down(x) for down, x in zip(downsample, branches, strict=True)], dim=1)


def _branch_off(branches: list[Tensor], transition: nn.ModuleList) -> list[Tensor]:
    """The branches as they are, and a coarser one made of the coarsest."""
    return [*branches, transition[len(branches)](branches[-1])]


def _downsample(channels: int, steps: int) -> nn.Sequential:
    """Half the grid `steps` times."""
    layers = []
    for _ in range(steps):
        layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
