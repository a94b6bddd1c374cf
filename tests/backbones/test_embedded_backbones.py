"""The backbones that come with the repository: their trained weights, and what stays frozen."""

import pytest
import torch
from torch import nn

from mega.backbones import BlazePose, EfficientNetLite0

BLAZEPOSE_FILE = "checkpoint/blazepose/encoder.safetensors"


def test_blazepose_is_the_published_network() -> None:
    backbone = BlazePose(BLAZEPOSE_FILE).eval()
    y, x = (torch.arange(256.0) / 255).expand(2, 256, 256).unbind()
    y = y.T
    with torch.no_grad():
        features = backbone(torch.stack([x, y, torch.sin(20 * x * y).square()])[None])
    assert features.shape == (1, backbone.out_channels, 8, 8)
    # Of the same picture by TensorFlow Lite, from the file the weights were taken out of.
    assert features.mean().item() == pytest.approx(0.8286572, abs=1e-4)
    assert features.std(correction=0).item() == pytest.approx(1.3376285, abs=1e-4)
    corner = torch.tensor([[6.0, 0, 0, 0], [6, 0, 6, 0], [6, 0, 6, 0], [6, 0, 0, 0]])
    torch.testing.assert_close(features[0, 233, ::2, ::2], corner, atol=1e-3, rtol=0)


def test_efficientnet_lite() -> None:
    backbone = EfficientNetLite0().eval()
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    images[1, :, 32:, :32] *= 0.3
    with torch.no_grad():
        features = backbone(images)
    assert features.shape == (2, backbone.out_channels, 3, 2)
    # Pre-trained: activations are of a sane size and tell pictures apart.
    assert 0.1 < features.std() < 10
    assert (features[0] - features[1]).abs().mean() > 0.5 * features.mean()


@pytest.mark.parametrize(
    ("free", "frozen", "moving"),
    [
        (BlazePose(), BlazePose(frozen_blocks=8), {"head", *(f"blocks.{i}" for i in range(8, 15))}),
        (
            EfficientNetLite0(pretrained=False),
            EfficientNetLite0(pretrained=False, frozen_stages=3),
            {"conv_head", "bn2", *(f"blocks.{i}" for i in range(3, 7))},
        ),
    ],
    ids=["blazepose", "efficientnet_lite0"],
)
def test_what_is_frozen_does_not_move(free: nn.Module, frozen: nn.Module, moving: set[str]) -> None:
    torch.manual_seed(0)
    frozen.load_state_dict(free.state_dict())
    frozen.train()
    images = torch.randn(2, 3, 64, 64)
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    frozen(images).sum().backward()
    with torch.no_grad():
        for parameter in frozen.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    moved = {k for k, v in frozen.state_dict().items() if not torch.equal(v, before[k])}
    assert {".".join(k.split(".")[: 2 if k.startswith("blocks.") else 1]) for k in moved} == moving
    # In use, the frozen part computes as exactly as the rest.
    free.load_state_dict(before)
    free.eval(), frozen.load_state_dict(before), frozen.eval()
    torch.testing.assert_close(free(images), frozen(images))
