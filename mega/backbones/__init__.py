"""Image backbones: images (B, 3, H, W) -> feature maps (B, out_channels, h, w).

Images are RGB in [0, 1], normalised by the backbone's `mean` and `std` (per channel); `CVQMAE.features` does that.
"""

from mega.backbones.convnets import HRNetW48, ResNet50
from mega.backbones.mobile import BlazePose, EfficientNetLite0
from mega.backbones.pretrained import load_pretrained, start_backbone
from mega.backbones.vit import ViT

# Arguments that only training reads; they are not stored with trained weights.
TRAINING_ONLY = ("pretrained", "weights", "frozen_stages", "frozen_blocks", "drop_path")

__all__ = [
    "TRAINING_ONLY",
    "BlazePose",
    "EfficientNetLite0",
    "HRNetW48",
    "ResNet50",
    "ViT",
    "load_pretrained",
    "start_backbone",
]
