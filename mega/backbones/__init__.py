"""Image backbones: pictures in, feature maps out. `mean`, `std` and `out_channels` say what one takes and gives."""

from mega.backbones.blazepose import BlazePose
from mega.backbones.efficientnet_lite import EfficientNetLite0
from mega.backbones.hrnet import HRNetW48
from mega.backbones.pretrained import load_pretrained, start_backbone
from mega.backbones.resnet import ResNet50
from mega.backbones.vit import ViT

# Arguments that only training reads: a file of trained weights does not name them.
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
