"""The ray caster against geometry worked out by hand; overlays by what they must keep and must show.

Each test is run with Embree, and without it.
"""

import sys

import numpy as np
import pytest
import trimesh

from mega.rendering import cast, draw_people, draw_side_view, draw_uncertainty, merge_meshes, panel
from mega.rendering.panels import round_limit
from mega.rendering.raycast import has_embree
from mega.rendering.shading import openness, vertex_normals

FOCAL, SIZE, CENTRE = 200.0, (120, 100), (59.5, 49.5)


@pytest.fixture(params=["embree", "numpy"], autouse=True)
def caster(request, monkeypatch):
    if request.param == "numpy":
        remove_embree(monkeypatch)
    yield request.param
    has_embree.cache_clear()


def remove_embree(monkeypatch):
    """As on a machine for which there is no such package."""
    has_embree.cache_clear()
    for name in ("embreex", "embreex.rtcore_scene", "embreex.mesh_construction"):
        monkeypatch.setitem(sys.modules, name, None)


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
    assert np.abs(projected - pixel).max() <= 0.5
    np.testing.assert_allclose(hits.depth, points[:, 2], rtol=1e-5)
    np.testing.assert_allclose(hits.barycentric.sum(1), 1, rtol=1e-5)
    assert (points[:, 2] < 2.0).all()  # only the near half is seen


def test_the_nearer_mesh_hides_the_other():
    (near, faces), (far, _) = square(1.5, half=0.1), square(2.0)
    vertices, faces = merge_meshes(np.stack([far, near]), faces)
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


@pytest.fixture
def people():
    """Two balls side by side: vertices (2, V, 3) and their faces."""
    left, faces = ball([-0.3, 0.0, 2.0], radius=0.15)
    right, _ = ball([0.25, 0.1, 2.5], radius=0.2)
    return np.stack([left, right]), faces


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)


def test_overlay_changes_the_people_and_nothing_else(people, photo):
    vertices, faces = people
    drawn = draw_people(photo, vertices, faces, FOCAL, CENTRE)
    coverage = cast(*merge_meshes(vertices, faces), FOCAL, CENTRE, SIZE).coverage[..., 0]
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[coverage == 0], photo[coverage == 0])
    assert (drawn[coverage == 1] != photo[coverage == 1]).any(axis=1).mean() > 0.99
    assert ((coverage > 0) & (coverage < 1)).sum() > 20  # soft edges


def test_overlay_of_nobody_is_the_picture(people, photo):
    _, faces = people
    nobody = np.zeros((0, 642, 3))
    np.testing.assert_array_equal(draw_people(photo, nobody, faces, FOCAL, CENTRE), photo)
    assert draw_side_view(nobody, faces, 80).shape[0] == 80


def test_people_keep_their_colours_apart(people):
    vertices, faces = people
    drawn = draw_people(np.zeros((100, 120, 3), np.uint8), vertices, faces, FOCAL, CENTRE, np.eye(3)[:2])
    left, right = drawn[50, 30], drawn[58, 80]  # a red and a green one
    assert left.argmax() == 0
    assert right.argmax() == 1


@pytest.mark.parametrize("depth", [0.0, 6.0])
def test_side_view_shows_everybody_whole(people, depth):
    vertices, faces = people
    vertices = vertices + np.array([0, 0, depth]) * np.arange(2)[:, None, None]  # the second one moves away
    view = draw_side_view(vertices, faces, 200, np.array([[1.0, 0, 0], [0, 1, 0]])).astype(int)
    red = (view[..., 0] > view[..., 1] + 25) & (view[..., 0] > view[..., 2] + 25)
    green = (view[..., 1] > view[..., 0] + 25) & (view[..., 1] > view[..., 2] + 25)
    assert red.sum() > 50
    assert green.sum() > 50
    border = np.ones(red.shape, bool)
    border[3:-3, 3:-3] = False
    assert not ((red | green) & border).any()
    # Who is farther from the picture's camera stands farther right here.
    assert np.nonzero(red)[1].mean() < np.nonzero(green)[1].mean()


def test_with_and_without_embree_rays_hit_the_same(caster, monkeypatch):
    if caster == "numpy":
        pytest.skip("compared with the other")
    # The balls cross each other; the last one is partly behind the camera.
    balls = [ball(centre)[0] for centre in ([0, 0, 2], [0.3, 0.1, 2.1], [-0.9, 0.6, 0.3])]
    vertices, faces = merge_meshes(np.stack(balls), ball([0, 0, 0])[1])
    with_embree = cast(vertices, faces, FOCAL, (70.3, 41.2), SIZE)
    remove_embree(monkeypatch)
    without = cast(vertices, faces, FOCAL, (70.3, 41.2), SIZE)
    assert 4000 < len(without.pixel) < 4 * SIZE[0] * SIZE[1]
    np.testing.assert_array_equal(without.pixel, with_embree.pixel)
    np.testing.assert_allclose(without.depth, with_embree.depth, rtol=1e-4)
    same = without.face_index == with_embree.face_index  # not on the edge that two triangles share
    assert same.mean() > 0.999
    np.testing.assert_allclose(without.barycentric[same], with_embree.barycentric[same], atol=2e-2)


def test_one_line_says_that_embree_is_missing(caster, people, photo, caplog):
    for _ in range(2):
        draw_people(photo, *people, FOCAL, CENTRE)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (caster == "numpy")
    assert all("embreex cannot be imported" in line and "\n" not in line for line in lines)


def test_openness_is_full_outside_and_low_in_a_crevice(caster):
    (left, faces), (right, _) = ball([0, 0, 0], 0.5), ball([1.01, 0, 0], 0.5)
    vertices, faces = merge_meshes(np.stack([left, right]), faces)
    share = openness(vertices, faces)
    if caster == "numpy":
        assert (share == 1).all()
        return
    assert share.min() >= 0
    assert share.max() <= 1
    assert share[vertices[:, 0] < -0.3].min() > 0.99
    assert share[np.abs(vertices[:, 0] - 0.5).argmin()] < 0.5


def test_normals_of_a_ball_point_outwards():
    vertices, faces = ball([1, 2, 3], 0.5)
    np.testing.assert_allclose(vertex_normals(vertices, faces), (vertices - [1, 2, 3]) / 0.5, atol=0.02)


@pytest.mark.parametrize(
    ("value", "limit"), [(0, 0.001), (0.001, 0.001), (0.0011, 0.002), (0.013, 0.02), (0.05, 0.05), (0.3, 0.5)]
)
def test_heat_map_ends_at_a_round_figure(value, limit):
    assert round_limit(value) == pytest.approx(limit)


def test_panel_lines_pictures_up(people, photo):
    vertices, faces = people
    heat = draw_uncertainty(photo, vertices, faces, FOCAL, CENTRE, np.linspace(0, 0.03, 2 * 642).reshape(2, 642))
    sheet = panel([[(photo, "one"), (heat, "two")], [(photo[:50], "")]])
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] > 150
    assert sheet.shape[1] > photo.shape[1] + heat.shape[1]
    np.testing.assert_array_equal(sheet[4:104, 4:124], photo)
