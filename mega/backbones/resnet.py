"""ResNet-50 without pooling and head, under the released names."""

from __future__ import annotations

from torch import nn
from torchvision.models import resnet50


class ResNet50(nn.Sequential):
    """Images (B, 3, H, W), normalised by `mean` and `std`, -> features (B, 2048, H / 32, W / 32).

    torchvision's network, its layers numbered: 0 is the first convolution, 4 to 7 are the four stages.

    Attributes:
        mean, std: what images in [0, 1] are normalised by, a channel.
        out_channels: 2048.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    out_channels = 2048

    def __init__(self):
        net = resnet50(weights=None)
        super().__init__(*list(net.children())[:-2])
