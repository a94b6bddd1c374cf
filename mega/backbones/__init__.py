"""Image backbones: pictures in, feature maps out. `mean`, `std` and `out_channels` say what one takes and gives."""

from mega.backbones.blazepose import BlazePose
from mega.backbones.efficientnet_lite import EfficientNetLite0
from mega.backbones.hrnet import HRNetW48
from mega.backbones.pretrained import load_pretrained
from mega.backbones.resnet import ResNet50
from mega.backbones.vit import ViT

__all__ = ["BlazePose", "EfficientNetLite0", "HRNetW48", "ResNet50", "ViT", "load_pretrained"]
