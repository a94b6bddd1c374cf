"""Geometry keeps its promises: round trips, agreement with slow versions, and inputs at the edge."""

import numpy as np
import pytest
import roma
import torch

from mega import geometry


def pixels_to_crop(points: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Pixels (..., N, 2) -> coordinates on the square crop of boxes (..., 4), [-1, 1] from edge to edge."""
    center, side = geometry.box_center_and_side(box)
    return (points - center[..., None, :]) * (2 / side)[..., None, None]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("batch", [(), (2,), (4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rot6d_round_trip(batch: tuple, dtype: torch.dtype) -> None:
    matrix = roma.random_rotmat(batch, dtype=dtype, generator=gen())
    rot6d = matrix[..., :2, :].flatten(-2)
    torch.testing.assert_close(geometry.rot6d_to_matrix(rot6d), matrix, atol=1e-5, rtol=0)


def test_rot6d_gives_rotations_and_gradients() -> None:
    rot6d = torch.randn(50, 6, generator=gen(), dtype=torch.float64, requires_grad=True)
    matrix = geometry.rot6d_to_matrix(rot6d)
    assert roma.is_rotation_matrix(matrix, epsilon=1e-9)
    assert torch.autograd.gradcheck(geometry.rot6d_to_matrix, (rot6d[:3].detach().requires_grad_(),))


def test_square_has_the_centre_and_the_longer_side_of_the_box() -> None:
    box = torch.tensor([10.0, 20, 110, 60])
    square = torch.from_numpy(geometry.square_box(box.numpy())).float()
    torch.testing.assert_close(pixels_to_crop(square.reshape(2, 2), box), torch.tensor([[-1.0, -1], [1, 1]]))


def test_full_camera_agrees_with_the_crop() -> None:
    """A body in the full picture comes to the place and size that the weak perspective camera gave it on the crop."""
    points = 0.4 * torch.randn(3, 20, 3, generator=gen())
    points[..., 2] = 0  # where both projections are the same
    cam = torch.tensor([[0.9, 0.1, -0.2], [1.2, 0.0, 0.3], [0.7, -0.4, 0.0]])
    box = torch.tensor([[100.0, 50, 300, 400], [0, 0, 50, 20], [-40, 300, 200, 700]])
    size = torch.tensor([[640.0, 480]]).expand(3, 2)
    focal = geometry.default_focal(size)
    moved = points + geometry.crop_camera_to_full(cam, box, size, focal)[:, None]
    pixels = geometry.project_perspective(moved, focal, size / 2)
    on_crop = pixels_to_crop(pixels, box)
    torch.testing.assert_close(on_crop, geometry.project_weak_perspective(points, cam), atol=1e-3, rtol=0)


@pytest.mark.parametrize("batch", [(), (1,), (2,), (3,), (2, 3)])
def test_procrustes_undoes_a_similarity(batch: tuple) -> None:
    source = torch.randn(*batch, 17, 3, dtype=torch.float64, generator=gen())
    rotation = roma.random_rotmat(batch, dtype=torch.float64, generator=gen(1))
    scale = 0.5 + torch.rand(batch, dtype=torch.float64, generator=gen(2))
    shift = torch.randn(*batch, 3, dtype=torch.float64, generator=gen(3))
    target = scale[..., None, None] * source @ rotation.mT + shift[..., None, :]
    fit = geometry.fit_similarity(source, target)
    torch.testing.assert_close(fit.scale, scale)
    torch.testing.assert_close(fit.rotation, rotation)
    torch.testing.assert_close(fit.translation, shift)
    torch.testing.assert_close(geometry.procrustes_align(source, target), target)


def test_procrustes_does_not_mirror() -> None:
    source = torch.randn(3, 17, 3, generator=gen())
    fit = geometry.fit_similarity(source * torch.tensor([-1.0, 1, 1]), source)
    torch.testing.assert_close(torch.det(fit.rotation), torch.ones(3))
    # and is still the best there is: no small change makes it better
    error = (fit(source * torch.tensor([-1.0, 1, 1])) - source).square().sum((-2, -1))
    turned = fit._replace(rotation=roma.rotvec_to_rotmat(0.02 * torch.randn(3, 3, generator=gen(1))) @ fit.rotation)
    assert ((turned(source * torch.tensor([-1.0, 1, 1])) - source).square().sum((-2, -1)) > error).all()


def test_procrustes_of_a_point() -> None:
    target = torch.randn(2, 5, 3, generator=gen())
    aligned = geometry.procrustes_align(torch.ones(2, 5, 3), target)
    torch.testing.assert_close(aligned, target.mean(1, keepdim=True).expand(2, 5, 3))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_crop_of_the_same_size_is_a_copy(image: np.ndarray) -> None:
    crop = geometry.square_crop(image, (20, 10, 52, 42), 32)
    np.testing.assert_array_equal(crop, image[10:42, 20:52])


@pytest.mark.parametrize(
    "box", [(-500, -500, -400, -400), (70, 50, 90, 70), (-1000, -800, 2000, 900), (5, 5, 5.5, 5.2), (79, 0, 80, 60)]
)
@pytest.mark.parametrize("size", [16, 224])
def test_any_box_gives_a_crop(image: np.ndarray, box: tuple, size: int) -> None:
    crop = geometry.square_crop(image, box, size, margin=1.2)
    assert crop.shape == (size, size, 3)
    assert crop.dtype == np.float32
    assert np.isfinite(crop).all()
    if box[2] < 0:
        assert not crop.any()


def test_blurring_a_part_is_blurring_the_whole(image: np.ndarray) -> None:
    """What the crop shows does not depend on picture content far from it."""
    large = np.tile(image, (10, 10, 1))
    box = (200, 200, 300, 290)
    crop = geometry.square_crop(large, box, 16)
    other = large.copy()
    other[:150], other[:, :150], other[350:], other[:, 350:] = 0, 255, 255, 0
    np.testing.assert_allclose(geometry.square_crop(other, box, 16), crop, atol=1e-3)


@pytest.mark.parametrize("box", [(10, 10, 10, 50), (30, 10, 20, 50), (0, 0, np.nan, 5), (1, 2, 3)])
def test_boxes_without_area_are_refused(image: np.ndarray, box: tuple) -> None:
    with pytest.raises(ValueError, match="box"):
        geometry.square_crop(image, box, 16)


def test_grey_pictures_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="picture"):
        geometry.square_crop(image[..., 0], (0, 0, 5, 5), 16)


def test_crop_matrix_turns_clockwise() -> None:
    """A point right of the centre goes below it at +90 degrees."""
    matrix = geometry.crop_matrix(np.array([0, 0, 100, 100]), 50, degrees=90)
    np.testing.assert_allclose(matrix @ [50, 50, 1], [25, 25])
    np.testing.assert_allclose(matrix @ [90, 50, 1], [25, 45])
