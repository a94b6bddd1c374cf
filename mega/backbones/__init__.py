"""Image backbones: pictures in, feature maps out. `mean`, `std` and `out_channels` say what one takes and gives."""

from mega.backbones.efficientnet_lite import EfficientNetLite0

__all__ = ["EfficientNetLite0"]
