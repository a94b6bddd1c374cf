"""Pre-trained weights of HRNet-W48, ResNet-50 and ViT-H, which users bring. They are read strictly, except that

a file may have the head of the network it was trained in, which is ignored:

    HRNet-W48   final_layer.*, for any number of keypoints
    ResNet-50   fc.*, deconv_layers.*, final_layer.*
    ViT         keypoint_head.*, head.*

and it may lack each of these entirely, which then keep their initial values (in brackets):

    HRNet-W48   final_layer.*, which none of our outputs uses
                downsample_stage_*, which resample the branches to one grid (PyTorch's defaults)
                stage4.2.fuse_layers.{1,2,3}.*: the original pose network has only the finest branch's output there
                (timm's: weights ~ N(0, 2 / (output channels * kernel area)), batch norms 1 and 0)
    all         *.num_batches_tracked, which no output depends on; files of old PyTorch versions lack them
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from mega.backbones.convnets import HRNetW48, ResNet50
from mega.backbones.vit import ViT
from mega.external_files import IMAGENET, describe, require
from mega_common.weights_io import content_in_words, load_strictly, read_torch

_HEADS = {
    HRNetW48: ("final_layer.",),
    ResNet50: ("fc.", "deconv_layers.", "final_layer."),
    ViT: ("keypoint_head.", "head."),
}
_LACKING = {
    HRNetW48: ("final_layer.", "downsample_stage_", *(f"stage4.2.fuse_layers.{branch}." for branch in (1, 2, 3)))
}
_COUNT = ".num_batches_tracked"
# torchvision's names of layers -> their numbers
_RESNET_LAYERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def start_backbone(backbone: nn.Module, weights: str | None) -> None:
    """Initialise a backbone for training: the option `backbone_weights` of train_mega.py.

    Args:
        weights: for HRNet, ResNet and ViT: a file, see `load_pretrained`; "imagenet" for torchvision's best weights of
            ResNet-50, which torchvision downloads if necessary; or "random". None for the other backbones, which have
            options of their own for their weights.

    Raises:
        FileNotFoundError: if the file is missing, or cannot be downloaded; says what to do.
        ValueError: if `weights` does not suit the backbone, or the file is wrong.
    """
    kind = type(backbone)
    if kind not in _HEADS:
        if weights is not None:
            raise ValueError(
                f"backbone_weights={weights} is for HRNet, ResNet and ViT; {kind.__name__} has options of its own for "
                "its weights, see configs/backbone: leave backbone_weights=null."
            )
        return
    if weights is None:
        raise ValueError(
            f"backbone_weights=null does not say what {kind.__name__} starts from: give backbone_weights=FILE"
            f"{', imagenet' if kind is ResNet50 else ''}, or random for an untrained backbone."
        )
    if weights == "imagenet":
        if kind is not ResNet50:
            raise ValueError(f"backbone_weights=imagenet is for ResNet-50, and this is {kind.__name__}: give its file.")
        weights = IMAGENET.place()
        if not weights.is_file():
            try:
                ResNet50_Weights.DEFAULT.get_state_dict(check_hash=True, weights_only=True)
            except (OSError, RuntimeError) as error:  # no network, or a broken download
                raise FileNotFoundError(
                    f"{weights} is missing and could not be fetched ({error}): {describe(IMAGENET)}; or give "
                    "backbone_weights=FILE with the place where you have it, or backbone_weights=random to start "
                    "without."
                ) from error
    if weights != "random":
        load_pretrained(backbone, weights)


def load_pretrained(backbone: HRNetW48 | ResNet50 | ViT, path: str | Path) -> None:
    """Load a file (a state dict, perhaps under the key `state_dict`) into a backbone; see the module's docstring.

    Keys may begin with `module.` or `backbone.`; ResNet's layers may have torchvision's names or our numbers.

    Raises FileNotFoundError with the file's source, or ValueError that names what differs; nothing is loaded then.
    """
    kind = type(backbone)
    state = {k.removeprefix("module.").removeprefix("backbone."): v for k, v in _read(Path(path)).items()}
    state = {k: v for k, v in state.items() if not k.startswith(_HEADS[kind])}
    if kind is ResNet50:
        parts = ((*k.partition("."), v) for k, v in state.items())
        state = {f"{_RESNET_LAYERS.get(layer, layer)}.{rest}": v for layer, _, rest, v in parts}
    lacking = tuple(part for part in _LACKING.get(kind, ()) if not any(key.startswith(part) for key in state))
    own = {k: v for k, v in backbone.state_dict().items() if k.startswith(lacking) or k.endswith(_COUNT)}
    load_strictly(backbone, {**own, **state}, path)


def _read(path: Path) -> dict[str, Tensor]:
    require(path)
    content = read_torch(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} is no state dict of a backbone: it holds {content_in_words(content)}.")
    return state
