"""Metrics and losses are the published ones, under the protocol `mega`."""

from pathlib import Path

import pytest
import roma
import torch
import torch.nn.functional as F
from torch import Tensor

from mega.geometry import MM_PER_M, procrustes_align, project_weak_perspective, rot6d_to_matrix, sample_spread
from mega.metrics import MEGA, mesh_errors
from tests.golden.golden import Arrays, assert_close, golden_cases, load


@pytest.fixture
def arrays(path: Path) -> Arrays:
    return load(path)[0]


def _assert_mean_errors(arrays: Arrays, name: str, distances: Tensor) -> None:
    """Distances (B, N) against the file's mean, its means by point and its means by sample.

    After an alignment they are a hundredth of the coordinates, of which float32 leaves 5e-4 at single points.
    """
    assert_close(distances.mean(), arrays[name], 1e-4, name)
    assert_close(distances.mean(dim=0), arrays[f"{name}_noreduce_dim0"], 5e-4, f"{name} by point")
    assert_close(distances.mean(dim=1), arrays[f"{name}_noreduce_dim1"], 1e-4, f"{name} by sample")


@golden_cases("metrics")
def test_errors(path: Path, arrays: Arrays) -> None:
    errors = {
        name: error / MM_PER_M for name, error in mesh_errors(arrays["pred"], arrays["gt"], arrays["J17"], MEGA).items()
    }
    for ours, published in (("PVE", "v2v"), ("PA-PVE", "pa_v2v"), ("MPJPE", "mpjpe"), ("PA-MPJPE", "pa_mpjpe")):
        assert_close(errors[ours], arrays[f"{published}_noreduce_dim1"], 1e-4, ours)
        assert_close(errors[ours].mean(), arrays[published], 1e-4, ours)
    for ours, published in (("PVE", "mvq_v2v"), ("PA-PVE", "mvq_pa_v2v")):
        assert_close(errors[ours], arrays[f"{published}_noreduce"], 1e-4, published)
        assert_close(errors[ours].mean(), arrays[published], 1e-4, published)


@golden_cases("metrics")
def test_errors_by_point(path: Path, arrays: Arrays) -> None:
    true, predicted = arrays["gt"], arrays["pred"]
    true, predicted = true - true.mean(1, keepdim=True), predicted - predicted.mean(1, keepdim=True)
    joints, predicted_joints = arrays["J17"] @ true, arrays["J17"] @ predicted
    _assert_mean_errors(arrays, "v2v", (predicted - true).norm(dim=-1))
    _assert_mean_errors(arrays, "mpjpe", (predicted_joints - joints).norm(dim=-1))
    aligned = procrustes_align(predicted, true)
    _assert_mean_errors(arrays, "pa_v2v", (aligned - true).norm(dim=-1))
    aligned = procrustes_align(predicted_joints, joints)
    _assert_mean_errors(arrays, "pa_mpjpe", (aligned - joints).norm(dim=-1))


@golden_cases("metrics")
def test_alignment_of_a_mirror_image(path: Path, arrays: Arrays) -> None:
    true = arrays["gt"]
    mirrored = procrustes_align(true * torch.tensor([-1.0, 1, 1]), true)
    error = (mirrored - true).norm(dim=-1).mean(dim=1)
    assert_close(error, arrays["pa_v2v_mirrored_noreduce_dim1"], 1e-4, "mirrored")
    aligned = procrustes_align(arrays["pred"], true)[0]
    assert_close(aligned, arrays["procrustes_aligned0"], 1e-4, "procrustes_aligned0")


@golden_cases("metrics")
def test_spread(path: Path, arrays: Arrays) -> None:
    pairwise, around = sample_spread(arrays["pred"])
    assert_close(pairwise / MM_PER_M, arrays["apd"], 1e-5, "apd")
    name = "mesh_variance_mean"
    assert_close(around / MM_PER_M, arrays[f"{name}_noreduce_dim0"], 1e-4, f"{name} by vertex")
    assert_close(around.mean() / MM_PER_M, arrays[name], 1e-4, name)
    by_mesh = (arrays["pred"] - arrays["pred"].mean(dim=0)).norm(dim=-1).mean(dim=1)
    assert_close(by_mesh, arrays[f"{name}_noreduce_dim1"], 1e-4, f"{name} by mesh")


@golden_cases("metrics")
def test_rotation_and_projection(path: Path, arrays: Arrays) -> None:
    predicted = rot6d_to_matrix(arrays["rot6d"])
    assert_close(predicted, arrays["rot6d_matrix"], 1e-5, "rot6d_matrix")
    true = roma.rotvec_to_rotmat(arrays["axis_angle"])
    assert_close(true, arrays["axis_angle_matrix"], 1e-5, "axis_angle_matrix")
    assert_close(F.mse_loss(predicted, true), arrays["rot_mse"], 1e-5, "rot_mse")

    projected = project_weak_perspective(arrays["J24"] @ arrays["pred"], arrays["cam"])
    assert_close(projected, arrays["ortho"], 1e-5, "ortho")
    assert_close((projected - arrays["gt2d_24"]).abs().mean(), arrays["reproj"], 1e-5, "reproj")
    config = load(path)[1]
    joints = (arrays["J17"] @ arrays["pred"])[:, config["H36M_TO_J17"]]
    xy, confidence = arrays["gt2d_17"][..., :2], arrays["gt2d_17"][..., 2:]
    loss = (confidence * (project_weak_perspective(joints, arrays["cam"]) - xy).abs()).mean()
    assert_close(loss, arrays["reproj_conf"], 1e-5, "reproj_conf")
