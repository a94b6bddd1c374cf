"""Crops, keypoints, flips and cameras are the published ones."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from mega.geometry import crop_camera_to_full, default_focal, square_box, square_crop
from mega.smpl_crops import (
    MIRRORED_PART17,
    MIRRORED_PART24,
    annotated_crop,
    annotated_matrix,
    keypoints_on_crop,
    mirror_keypoints,
    mirror_pose,
    patch_crop,
    patch_keypoints,
    patch_matrix,
    truncated_points,
    turn_in_crop,
    turn_root,
)
from tests.golden.golden import Arrays, assert_close, assert_same, golden_cases, load

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


@golden_cases("crops")
def test_annotated_crops(path: Path) -> None:
    arrays, config = load(path)
    image, size = arrays["image_rgb"].numpy(), config["res"]
    points, meshlike = arrays["points"].numpy(), arrays["points"].numpy()[:, [0, 1, 0]] / image.shape[1]
    for i, (x, y, scale, degrees) in enumerate(arrays["boxes"].tolist()):
        center = np.array([x, y])
        crop = annotated_crop(image, center, scale, size, degrees)
        assert_close(crop.ravel()[arrays["idx"].numpy()], arrays["crop_values"][i], 1e-9, f"crop_values {i}")
        assert_same(np.rint(crop).astype(np.uint8), arrays["crop_uint8"][i], f"crop_uint8 {i}")
        matrix = annotated_matrix(center, scale, size, degrees)
        assert_same(truncated_points(points, matrix), arrays["transform"][i], f"transform {i}")
        inverse = cv2.invertAffineTransform(matrix)
        assert_same(truncated_points(points, inverse), arrays["transform_inv"][i], f"transform_inv {i}")
        for n, mirrored in ((17, MIRRORED_PART17), (24, MIRRORED_PART24)):
            on_crop = keypoints_on_crop(arrays[f"kp{n}"].numpy(), center, scale, size, degrees)
            assert_close(on_crop, arrays[f"j2d_{n}"][i], 1e-6, f"j2d_{n} {i}")
            assert_close(mirror_keypoints(on_crop, mirrored), arrays[f"j2d_{n}_flip"][i], 1e-6, f"j2d_{n}_flip {i}")

        mirrored, scale = bool(arrays["patch256_flip"][i]), scale * float(arrays["patch256_scale"][i])
        patch = patch_crop(image, center, scale, 256, degrees, mirrored)
        assert_same(patch.ravel()[arrays["patch256_idx"].numpy()], arrays["patch256_val"][i], f"patch256_val {i}")
        seen_from = np.array([image.shape[1] - 1 - x, y]) if mirrored else center
        matrix = patch_matrix(seen_from, scale, 256, degrees)
        assert_close(matrix, arrays["patch256_trans"][i], 1e-6, f"patch256_trans {i}")
        # Turned and then mirrored, as our data set does it; published is the other way round.
        on_patch = patch_keypoints(arrays["kp17"].numpy(), center, scale, 256, -degrees if mirrored else degrees)
        on_patch = mirror_keypoints(on_patch, MIRRORED_PART17) if mirrored else on_patch
        published = on_patch * np.array([0.5, 0.5, 1], np.float32)  # p/256 - 0.5; ours are in [-1, 1]
        assert_close(published, arrays["patch256_j2d_17"][i], 1e-6, f"patch256_j2d_17 {i}")

    for i, degrees in enumerate(arrays["aa_rot"].tolist()):
        assert_close(turn_root(arrays["aa"][i].numpy(), degrees), arrays["aa_out"][i], 1e-9, "aa_out")
        assert_close(meshlike @ turn_in_crop(degrees).T, arrays["rot_mesh"][i], 1e-9, "rot_mesh")
    pose = arrays["pose"].numpy().reshape(-1, 3)
    assert_close(mirror_pose(pose).ravel(), arrays["pose_flip"], 1e-9, "pose_flip")
    turned = np.concatenate([turn_root(pose[0], 20.0)[None], pose[1:]])
    assert_close(mirror_pose(turned).ravel(), arrays["pose_processing_rot20_flip"], 1e-6, "pose_processing_rot20_flip")
    for n, mirrored in ((17, MIRRORED_PART17), (24, MIRRORED_PART24)):
        assert_close(mirror_keypoints(arrays[f"fkp{n}"].numpy(), mirrored), arrays[f"fkp{n}_flip"], 1e-9, f"fkp{n}")
    for name in arrays:
        if name.startswith("demo_") or name == "names":
            arrays[name]  # the demo's are checked above
    arrays.assert_all_read()
