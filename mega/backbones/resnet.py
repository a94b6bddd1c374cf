"""ResNet-50 without pooling and head; names as in the released weights."""

from __future__ import annotations

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.models import resnet50


class ResNet50(nn.Sequential):
    """Images (B, 3, H, W), normalised by `mean` and `std`, -> features (B, 2048, H / 32, W / 32).

    torchvision's network with numbered layers: 0 is the first convolution, 4 to 7 are the four stages.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    out_channels = 2048

    def __init__(self):
        net = resnet50(weights=None)
        super().__init__(*list(net.children())[:-2])
