"""Metrics against slow versions, and what they must not react to."""

import pytest
import roma
import torch

from mega.geometry import sample_spread
from mega.metrics import COCO17, MEGA, Protocol, best_of, keypoint2d_error, mesh_errors


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def regressor() -> torch.Tensor:
    weights = torch.rand(23, 60, generator=gen(5))
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("protocol", [COCO17, MEGA])
def test_moving_a_body_changes_nothing(protocol: Protocol, regressor: torch.Tensor) -> None:
    true = torch.randn(2, 60, 3, generator=gen())
    errors = mesh_errors(true + torch.tensor([1.0, -2, 3]), true, regressor, protocol)
    for name, error in errors.items():
        assert error.shape == (2,), name
        assert error.max() < 0.01, name


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_similarity_changes_no_aligned_error(batch: int, regressor: torch.Tensor) -> None:
    true, predicted = torch.randn(2, batch, 60, 3, generator=gen(), dtype=torch.float64)
    rotation = roma.random_rotmat(batch, dtype=torch.float64, generator=gen(1))
    moved = 1.7 * predicted @ rotation + 4
    before = mesh_errors(predicted, true, regressor.double(), COCO17)
    after = mesh_errors(moved, true, regressor.double(), COCO17)
    for name in ("PA-MPJPE", "PA-PVE"):
        torch.testing.assert_close(after[name], before[name])
        assert (before[name] < before[name[3:]]).all()
    assert (after["PVE"] > before["PVE"]).all()


def test_known_errors_in_millimetres(regressor: torch.Tensor) -> None:
    """A body of which one vertex alone, of no keypoint, is 6 m off: 100 mm on average over 60."""
    regressor = regressor.clone()
    regressor[:, 7] = 0
    true = torch.randn(1, 60, 3, generator=gen())
    predicted = true.clone()
    predicted[0, 7, 1] += 6
    errors = mesh_errors(predicted, true, regressor, COCO17)
    assert errors["PVE"].item() == pytest.approx(100, rel=1e-4)
    assert errors["MPJPE"].item() == pytest.approx(0, abs=1e-3)


def test_coco17_by_hand(regressor: torch.Tensor) -> None:
    predicted, true = torch.randn(2, 60, 3, generator=gen())
    joints, true_joints = (regressor @ predicted)[:17], (regressor @ true)[:17]
    joints, true_joints = joints - joints[[11, 12]].mean(0), true_joints - true_joints[[11, 12]].mean(0)
    expected = 1000 * (joints - true_joints).norm(dim=1).mean()
    torch.testing.assert_close(mesh_errors(predicted, true, regressor, COCO17)["MPJPE"], expected)


def test_samples_broadcast_against_one_truth(regressor: torch.Tensor) -> None:
    samples, true = torch.randn(2, 5, 60, 3, generator=gen()), torch.randn(2, 1, 60, 3, generator=gen(1))
    errors = mesh_errors(samples, true, regressor, COCO17)
    for name, error in errors.items():
        assert error.shape == (2, 5)
        alone = mesh_errors(samples[1, 3], true[1, 0], regressor, COCO17)[name]
        torch.testing.assert_close(error[1, 3], alone)


def test_pa_pve_by_joints_is_no_better_than_by_vertices(regressor: torch.Tensor) -> None:
    true, predicted = torch.randn(2, 4, 60, 3, generator=gen())
    by_joints = Protocol("j", COCO17.joints, COCO17.root, pa_pve="joints")
    errors = [mesh_errors(predicted, true, regressor, p)["PA-PVE"] for p in (COCO17, by_joints)]
    assert (errors[0] < errors[1]).all()


def test_best_of_is_taken_per_person() -> None:
    errors = torch.tensor([[3.0, 1, 2], [4, 6, 1]])
    assert best_of(errors, 1).tolist() == [3, 4]
    assert best_of(errors, 2).tolist() == [1, 4]
    assert best_of(errors, 3).tolist() == [1, 1]
    with pytest.raises(ValueError, match="best of 4"):
        best_of(errors, 4)


def test_keypoint_error_is_a_share_of_the_box() -> None:
    true = torch.zeros(2, 3, 3)
    true[0, :2, 2] = 1
    predicted = torch.zeros(2, 3, 2)
    predicted[0, 0, 0], predicted[0, 2, 0] = 0.2, 9.0  # the last is not visible
    error = keypoint2d_error(predicted, true, margin=1.2)
    # 0.2 of the half crop is 0.1 of the crop, 0.12 of the box, on one of two keypoints
    assert error[0].item() == pytest.approx(0.06)
    assert error[1].isnan()


def test_spread_by_hand() -> None:
    samples = torch.randn(2, 4, 9, 3, generator=gen())
    pairwise, around = sample_spread(samples)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    expected = sum(1000 * (samples[:, i] - samples[:, j]).norm(dim=-1).mean(-1) for i, j in pairs) / len(pairs)
    torch.testing.assert_close(pairwise, expected)
    assert around.shape == (2, 9)
    assert sample_spread(samples[:, :1])[0].isnan().all()
