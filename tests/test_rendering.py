"""The ray caster against geometry worked out by hand."""

import numpy as np
import pytest
import trimesh

from mega.rendering import cast, merge_meshes

FOCAL, SIZE, CENTRE = 200.0, (120, 100), (60.0, 50.0)


def ball(centre, radius=0.5, subdivisions=3):
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return np.asarray(mesh.vertices) + centre, np.asarray(mesh.faces)


def square(depth, half=0.25):
    corners = np.array([[-half, -half, depth], [half, -half, depth], [half, half, depth], [-half, half, depth]])
    return corners, np.array([[0, 1, 2], [0, 2, 3]])


def test_square_covers_the_pixels_it_projects_to():
    vertices, faces = square(depth=2.0)  # half side 0.25 * 200 / 2 = 25 px
    coverage = cast(vertices, faces, FOCAL, CENTRE, SIZE).coverage[..., 0]
    expected = np.zeros((100, 120), np.float32)
    expected[25:75, 35:85] = 1
    np.testing.assert_array_equal(coverage, expected)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_edges_are_covered_in_proportion(samples):
    vertices, faces = square(depth=2.0)
    shifted = (CENTRE[0] + 0.5, CENTRE[1])  # both vertical edges now lie in the middle of a pixel column
    coverage = cast(vertices, faces, FOCAL, shifted, SIZE, samples=samples).coverage[..., 0]
    assert abs(coverage[50, 35] - 0.5) <= 0.5 / samples**2 + 1e-6
    assert abs(coverage.sum() - 2500) <= 50


def test_hits_lie_on_the_rays_and_in_the_triangles():
    vertices, faces = ball([0.1, -0.05, 2.0])
    hits = cast(vertices, faces, FOCAL, CENTRE, SIZE)
    points = hits.interpolate(vertices, faces)
    projected = points[:, :2] / points[:, 2:] * FOCAL + CENTRE
    pixel = np.stack([hits.pixel % SIZE[0], hits.pixel // SIZE[0]], axis=1)
    assert np.abs(projected - (pixel + 0.5)).max() <= 0.5
    np.testing.assert_allclose(hits.depth, points[:, 2], rtol=1e-5)
    np.testing.assert_allclose(hits.barycentric.sum(1), 1, rtol=1e-5)
    assert (points[:, 2] < 2.0).all()  # only the near half is seen


def test_the_nearer_mesh_hides_the_other():
    near, far = square(1.5, half=0.1), square(2.0)
    vertices, faces = merge_meshes([far, near])
    hits = cast(vertices, faces, FOCAL, CENTRE, SIZE)
    middle = hits.pixel == 50 * SIZE[0] + 60
    assert (hits.face_index[middle] >= 2).all()
    assert set(hits.face_index) == {0, 1, 2, 3}


@pytest.mark.parametrize("centre", [[0, 0, -3], [50, 0, 2], [0, -50, 2]])
def test_nothing_in_view_is_an_empty_picture(centre):
    hits = cast(*ball(centre), FOCAL, CENTRE, SIZE)
    assert len(hits.pixel) == 0
    assert hits.coverage.shape == (100, 120, 1)
    assert not hits.resolve(np.zeros((0, 3))).any()


def test_a_camera_inside_the_mesh_sees_it_everywhere():
    hits = cast(*ball([0, 0, 0]), FOCAL, CENTRE, SIZE)
    assert (hits.coverage == 1).all()
