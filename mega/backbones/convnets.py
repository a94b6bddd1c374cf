"""ResNet-50 and HRNet-W48 without pooling and heads; names as in the released weights."""

from __future__ import annotations

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models import resnet50

_N_KEYPOINTS = 24  # channels of the pose head, which is loaded but not used
_CHANNELS = (48, 96, 192, 384)  # of the branches, finest first


class ResNet50(nn.Sequential):
    """Images (B, 3, H, W), normalised by `mean` and `std`, -> features (B, 2048, H / 32, W / 32).

    torchvision's network with numbered layers: 0 is the first convolution, 4 to 7 are the four stages.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    out_channels = 2048

    def __init__(self):
        super().__init__(*list(resnet50(weights=None).children())[:-2])


class HRNetW48(nn.Module):
    """Images (B, 3, H, W), normalised by `mean` and `std`, -> features (B, 720, H / 32, W / 32).

    The network is timm's, with the names of `pose_hrnet_w48.pth`. Strided convolutions reduce the three finer branches
    to the grid of the coarsest; the channels of all four are concatenated.

    Source: Wang et al., Deep High-Resolution Representation Learning for Visual Recognition, TPAMI 2020.
    """

    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
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
        branches = self.stage3([*branches, self.transition2[-1](branches[-1])])
        branches = self.stage4([*branches, self.transition3[-1](branches[-1])])
        downsample = (self.downsample_stage_1, self.downsample_stage_2, self.downsample_stage_3, nn.Identity())
        return torch.cat([down(x) for down, x in zip(downsample, branches, strict=True)], dim=1)


def _downsample(channels: int, steps: int) -> nn.Sequential:
    """Halve the grid `steps` times."""
    layers = []
    for _ in range(steps):
        layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
