"""MoveNet: keypoints of people in photographs, as a backbone (Thunder, one person) and as a detector (MultiPose).

A MobileNetV2 with a feature pyramid predicts maps at a quarter of the image's resolution: for each pixel how likely it
is the centre of a person, how likely each of COCO's 17 keypoints lies there, and where the keypoints of a person with
its centre there are. The maps are refined by each other: a keypoint is the best pixel of its own map near the place
that the centre points to.

Source: Votel and Li, Next-Generation Pose Detection with MoveNet and TensorFlow.js (TensorFlow blog, 2021); Zhou et
al., Objects as Points, 2019. The networks are Google's (Apache-2.0); `tools/convert_movenet.py` fetches their weights.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_common.weights_io import load_strictly, read_weights

MOVENET_FORMAT = "MoveNet"
STRIDE = 4  # px of the image per pixel of the maps
N_KEYPOINTS = 17
# Output channels of the 17 inverted residual blocks; at the marked ones the resolution is halved.
_THUNDER = (56, (32, *(40,) * 2, *(56,) * 3, *(112,) * 4, *(168,) * 3, *(280,) * 3, 560))
_MULTIPOSE = (48, (24, *(40,) * 2, *(48,) * 3, *(96,) * 4, *(144,) * 3, *(240,) * 3, 480))
_HALVED = (1, 3, 6, 13)
_PYRAMID = {9: 64, 5: 32, 2: 24}  # blocks whose outputs join the pyramid, coarse to fine, and its channels there
_TOP = 1280
_SEEN = 0.127  # score of a keypoint that counts in the score of a person


class MoveNet(nn.Module):
    """Images (B, 3, H, W) in [0, 255], H and W multiples of 32 -> maps.

    Args:
        stem: output channels of the first convolution.
        channels: output channels of each block.
        maps: {name: channels} of the predicted maps.
    """

    def __init__(self, stem: int, channels: tuple[int, ...], maps: dict[str, int]):
        super().__init__()
        self.stem = _convolution(3, stem, 3, stride=2)
        before = (stem, *channels[:-1])
        self.blocks = nn.ModuleList(
            _Block(before[i], channels[i], 1 if i == 0 else 6, 2 if i in _HALVED else 1) for i in range(len(channels))
        )
        self.top = _convolution(channels[-1], _TOP)
        widths = (*_PYRAMID.values(), 24)
        self.lateral = nn.ModuleList([nn.Conv2d(_TOP, widths[0], 1)])
        self.lateral.extend(nn.Conv2d(channels[i], width, 1) for i, width in _PYRAMID.items())
        self.merge = nn.ModuleList(_Separable(a, b) for a, b in pairwise(widths))
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(_Separable(24, 96), nn.Conv2d(96, n, 1)) for name, n in maps.items()}
        )

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The coarsest features (B, 1280, H/32, W/32) and the pyramid's finest (B, 24, H/4, W/4)."""
        x = F.relu6(self.stem(images * (2 / 255) - 1))
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        top = F.relu6(self.top(x))
        x = self.lateral[0](top)
        for lateral, merge, i in zip(self.lateral[1:], self.merge, _PYRAMID, strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = merge(x + lateral(outputs[i]))
        return top, x

    def maps(self, fine: Tensor) -> dict[str, Tensor]:
        """{name: (B, channels, h, w)} from the pyramid's finest features; scores are in [0, 1]."""
        found = {name: head(fine) for name, head in self.heads.items()}
        return found | {name: found[name].sigmoid() for name in ("center", "heatmap")}


class Thunder(MoveNet):
    """The network for one person, whose crop should be 256 px wide and hold 1.2 boxes of the person."""

    def __init__(self) -> None:
        maps = {"center": 1, "heatmap": N_KEYPOINTS, "regress": 2 * N_KEYPOINTS, "offset": 2 * N_KEYPOINTS}
        super().__init__(*_THUNDER, maps)

    def keypoints(self, fine: Tensor) -> Tensor:
        """Finest features (B, 24, h, w) -> keypoints (B, 17, 3): x, y in px of the image and score, in COCO's order.

        The person nearest to the middle of the image counts.
        """
        maps = self.maps(fine)
        h, w = fine.shape[2:]
        y, x = _grid(h, w, fine)
        nearness = 1 / (torch.hypot(y - h // 2, x - w // 2) + 1.8)
        center = (maps["center"][:, 0] * nearness).flatten(1).argmax(dim=1)  # (B,)
        expected = _take(maps["regress"], center[:, None])[:, 0].unflatten(-1, (N_KEYPOINTS, 2))  # (B, 17, 2): y, x
        expected = expected + torch.stack([center // w, center % w], dim=-1)[:, None]
        distance = torch.hypot(y - expected[..., 0, None, None], x - expected[..., 1, None, None])  # (B, 17, h, w)
        best = (maps["heatmap"] / (distance + 1.8)).flatten(2).argmax(dim=2)  # (B, 17)
        return _read_keypoints(maps, best)


class MultiPose(MoveNet):
    """The network for several people."""

    def __init__(self) -> None:
        maps = {"center": 1, "box_scale": 2, "box_offset": 2, "heatmap": N_KEYPOINTS}
        super().__init__(*_MULTIPOSE, maps | {"regress": 2 * N_KEYPOINTS, "offset": 2 * N_KEYPOINTS})

    def people(self, images: Tensor, n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
        """The n people with the clearest centres in images (B, 3, H, W).

        Returns:
            Boxes (B, n, 4) = (x0, y0, x1, y1) px, scores (B, n), and keypoints (B, n, 17, 3) as those of `Thunder`.
        """
        maps = self.maps(self.features(images)[1])
        h, w = maps["center"].shape[2:]
        y, x = _grid(h, w, images)
        peaks = maps["center"] * (maps["center"] == F.max_pool2d(maps["center"], 5, stride=1, padding=2))
        scores, center = peaks.flatten(1).topk(n, dim=1)  # (B, n)
        place = torch.stack([center // w, center % w], dim=-1)  # (B, n, 2): y, x
        middle, size = place + _take(maps["box_offset"], center), _take(maps["box_scale"], center).clamp(min=0)
        limit = torch.tensor([h, w], dtype=size.dtype, device=size.device)
        corners = [torch.minimum((middle + k * size / 2).clamp(min=0), limit) for k in (-1, 1)]  # (B, n, 2) each
        expected = place[:, :, None] + _take(maps["regress"], center).unflatten(-1, (N_KEYPOINTS, 2))  # (B, n, 17, 2)

        # A keypoint lies in the box of its person, and is the likelier the nearer it is to the expected place.
        low, high = (corner[..., None, None, None] for corner in corners)  # (B, n, 2, 1, 1, 1)
        inside = (
            (y >= low[:, :, 0]) & (y < high[:, :, 0]) & (x >= low[:, :, 1]) & (x < high[:, :, 1])
        )  # (B, n, 1, h, w)
        squared = (y - expected[..., 0, None, None]).square() + (x - expected[..., 1, None, None]).square()
        nearness = torch.exp(-squared / (0.3 * min(h, w)))
        likely = (maps["heatmap"][:, None] * nearness * inside).flatten(3)  # (B, n, 17, hw)
        best = likely.argmax(dim=3)  # (B, n, 17)
        keypoints = torch.stack([_read_keypoints(maps, best[:, p]) for p in range(n)], dim=1)
        score = likely.amax(dim=1).gather(2, best.transpose(1, 2)).transpose(1, 2)  # of whoever it fits best
        keypoints[..., 2] = score
        seen = score > _SEEN
        scores = scores * (score * seen).sum(dim=2) / seen.sum(dim=2).clamp(min=1)
        boxes = STRIDE * torch.cat([corner.flip(-1) for corner in corners], dim=-1)
        return boxes, scores, keypoints


def load_movenet(net: MoveNet, path: str | Path) -> MoveNet:
    """Load the weights of tools/convert_movenet.py. Raises FileNotFoundError, or ValueError that names the file."""
    load_strictly(net, read_weights(path, MOVENET_FORMAT)[0], path)
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _grid(h: int, w: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Row (h, 1) and column (1, w) of each pixel."""
    rows, columns = (torch.arange(n, dtype=like.dtype, device=like.device) for n in (h, w))
    return rows[:, None], columns[None]


def _take(maps: Tensor, index: Tensor) -> Tensor:
    """Values (B, n, C) of maps (B, C, h, w) at the pixels (B, n), counted row by row."""
    return maps.flatten(2).gather(2, index[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)


def _read_keypoints(maps: dict[str, Tensor], index: Tensor) -> Tensor:
    """Keypoints (B, 17, 3): x, y px and score, at the pixels (B, 17) of the maps."""
    w = maps["heatmap"].shape[3]
    k = torch.arange(N_KEYPOINTS, device=index.device)
    offset = _take(maps["offset"], index).unflatten(-1, (N_KEYPOINTS, 2))[:, k, k]  # (B, 17, 2): y, x
    score = _take(maps["heatmap"], index)[:, k, k]  # (B, 17)
    return torch.stack([STRIDE * (index % w + offset[..., 1]), STRIDE * (index // w + offset[..., 0]), score], dim=-1)


class _Block(nn.Module):
    """Inverted residual block (Sandler et al., MobileNetV2, CVPR 2018), batch norms folded into the convolutions."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int):
        super().__init__()
        wide = expansion * channels
        self.expand = _convolution(channels, wide) if expansion > 1 else None
        self.depthwise = _convolution(wide, wide, 3, stride, groups=wide)
        self.project = _convolution(wide, out)
        self.residual = channels == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class _Separable(nn.Module):
    """Depthwise, then pointwise convolution."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pointwise(self.depthwise(x)))


class _Conv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding: with stride 2, a side of even length is padded at its end only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride[0] == 2 else x)


def _convolution(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0
    return _Conv2d(channels, out, kernel, stride, padding, groups=groups)
