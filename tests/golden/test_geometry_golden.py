"""Crops and cameras of the demo are the published ones."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mega.geometry import (
    crop_camera_to_full,
    default_focal,
    square_box,
    square_crop,
)
from tests.golden.golden import Arrays, assert_close, golden_cases, load

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def _squares(arrays: Arrays) -> Tensor:
    center, size = arrays["demo_center"].double(), arrays["demo_size"].double()[:, None]
    return torch.cat([center - size / 2, center + size / 2], dim=1)


@golden_cases("crops")
def test_demo_crops(path: Path) -> None:
    arrays, config = load(path)
    image, size = arrays["image_rgb"].numpy(), config["res"]
    squares = _squares(arrays)
    for i, (box, square) in enumerate(zip(arrays["demo_boxes"].numpy(), squares.numpy(), strict=True)):
        np.testing.assert_allclose(square_box(box), square, rtol=1e-6, atol=1e-4)
        crop = square_crop(image, square, size)
        values = torch.from_numpy(((crop / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1))
        assert_close(values.flatten()[arrays["demo_idx"]], arrays["demo_values"][i], 1e-5, f"demo_values {i}")
        if i == 0:
            # Its box was not rounded to float32 first, which moves a few pixels by one level of 255.
            difference = (values - arrays["demo_img0_f16"].float()).abs()
            assert difference.max() < 1.05 / 255 / IMAGENET_STD.min()
            assert (difference > 2e-3).sum() < 10


@golden_cases("crops")
def test_demo_cameras(path: Path) -> None:
    arrays, _ = load(path)
    cam, box, size = arrays["demo_cam"], _squares(arrays).float(), arrays["demo_img_size"].float()
    # The two names are swapped in the published file: what is called the default is a focal length of 5000 px.
    full = crop_camera_to_full(cam, box, size, arrays["demo_focal"])
    torch.testing.assert_close(full, arrays["demo_cam_full"], rtol=1e-5, atol=1e-5)
    full = crop_camera_to_full(cam, box, size, 5000.0)
    torch.testing.assert_close(full, arrays["demo_cam_full_default_focal"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(default_focal(size), arrays["demo_focal"].expand(len(size)))
