"""Connection matrices: the published ones, those of other meshes, and bad input."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from mesh_vq_vae import SMPL_SEEDS, SMPL_STEPS, Hierarchy, MeshVQVAE, build_hierarchy, read_hierarchy
from mesh_vq_vae.hierarchy import neighbours

PUBLISHED = Path(__file__).parents[3] / "shared" / "connections_smpl"


def write_hierarchy(hierarchy: Hierarchy, folder: Path) -> None:
    """As the published matrices are stored."""
    for name, matrix in hierarchy.items():
        np.save(folder / f"_{name}.npy", matrix)


@pytest.fixture(scope="module")
def sphere() -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=3)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published matrices are not here")
def test_published_matrices_are_reproduced():
    mesh = trimesh.load(PUBLISHED / "template.ply", process=False)
    built = build_hierarchy(mesh.faces, len(mesh.vertices), SMPL_STEPS, SMPL_SEEDS)
    published = read_hierarchy(PUBLISHED)
    assert built.keys() == published.keys()
    assert len(built) == 16
    for name, matrix in published.items():
        np.testing.assert_array_equal(built[name], matrix, err_msg=name)


@pytest.mark.parametrize(
    "steps",
    [((1, 1, 1), (2, 2, 2)) * 2, ((3, 3, 3), (1, 1, 1), (2, 2, 2)), ((5, 5, 4),)],
    ids=["published", "long", "one"],
)
def test_hierarchy_of_any_mesh(sphere, steps):
    hierarchy = build_hierarchy(sphere.faces, len(sphere.vertices), steps)
    assert hierarchy.n_vertices == len(sphere.vertices)
    points = len(sphere.vertices)
    assert len(hierarchy) == 2 * len(steps)
    for i, (stride, pool_radius, unpool_radius) in enumerate(steps):
        pool, unpool = hierarchy[f"pool{i}"], hierarchy[f"unpool{i}"]
        assert len(unpool) == points
        assert (stride > 1) == (len(pool) < points)
        for matrix, source, radius in ((pool, points, pool_radius), (unpool, len(pool), unpool_radius)):
            counts, ids, hops = matrix[:, 0], matrix[:, 1::2], matrix[:, 2::2]
            real = np.arange(ids.shape[1]) < counts[:, None]
            assert counts.min() >= 1
            assert ids[real].min() >= 0
            assert ids[real].max() < source
            assert (ids[~real] == source).all()
            assert (hops[~real] == -1).all()
            assert hops[real].min() == 0
            assert hops[real].max() <= radius
        # Each centre pools itself first, and lies in the unpool row of the vertex it is.
        assert (pool[:, 2] == 0).all()
        for centre, vertex in enumerate(pool[:, 1]):
            assert centre in unpool[vertex, 1::2]
        points = len(pool)


def test_seeds_stay_centres_on_every_level(sphere):
    seeds = [7, 100, 300]
    hierarchy = build_hierarchy(sphere.faces, len(sphere.vertices), ((2, 2, 2), (2, 2, 2)), seeds)
    for name in ("pool0", "pool1"):
        centres = hierarchy[name][:, 1].tolist()
        assert set(seeds) <= set(centres)
        seeds = [centres.index(seed) for seed in seeds]


def test_files_round_trip(sphere, tmp_path):
    hierarchy = build_hierarchy(sphere.faces, len(sphere.vertices), ((2, 2, 2), (1, 1, 1)))
    write_hierarchy(hierarchy, tmp_path)
    again = read_hierarchy(tmp_path)
    for name, matrix in hierarchy.items():
        np.testing.assert_array_equal(again[name], matrix)
        assert again[name].dtype == np.int32


def test_padded_slots_are_masked(sphere):
    matrix = build_hierarchy(sphere.faces, len(sphere.vertices), ((2, 2, 2),))["pool0"]
    ids, mask = neighbours(matrix)
    assert mask.sum() == matrix[:, 0].sum()
    assert (ids[~mask] == 0).all()


def test_disconnected_mesh_is_refused(sphere):
    faces = np.concatenate([sphere.faces, sphere.faces + len(sphere.vertices)])
    with pytest.raises(ValueError, match="2 components: 642 vertices around vertex 0; 642 vertices around vertex 642"):
        build_hierarchy(faces, 2 * len(sphere.vertices))


def test_vertex_without_a_face_is_a_component(sphere):
    with pytest.raises(ValueError, match="1 vertices around vertex 642"):
        build_hierarchy(sphere.faces, len(sphere.vertices) + 1)


def test_bad_indices_are_refused(sphere):
    with pytest.raises(ValueError, match="the mesh has 10 vertices"):
        build_hierarchy(sphere.faces, 10)
    with pytest.raises(ValueError, match="seeds"):
        build_hierarchy(sphere.faces, len(sphere.vertices), seeds=[9999])
    with pytest.raises(ValueError, match="unpool radius 1 is too small for stride 5"):
        build_hierarchy(sphere.faces, len(sphere.vertices), ((5, 5, 1),))


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no connection matrices"):
        read_hierarchy(tmp_path)
    np.save(tmp_path / "_pool0.npy", np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"_pool0\.npy is not a connection matrix"):
        read_hierarchy(tmp_path)
    with pytest.raises(ValueError, match="without gaps"):
        Hierarchy.from_matrices({"pool0": np.zeros((1, 3), np.int32)})


def test_matrices_of_another_mesh_are_refused(sphere, tmp_path):
    write_hierarchy(build_hierarchy(sphere.faces, len(sphere.vertices), ((2, 2, 2), (2, 2, 2))), tmp_path)
    assert read_hierarchy(tmp_path).n_vertices == len(sphere.vertices)
    # Two folders mixed up: the second step does not begin where the first ends.
    smaller = trimesh.creation.icosphere(subdivisions=2)
    other = build_hierarchy(smaller.faces, len(smaller.vertices), ((2, 2, 2), (2, 2, 2)))
    np.save(tmp_path / "_pool1.npy", other["pool1"])
    with pytest.raises(ValueError, match=f"{tmp_path}: the connection matrices are not of one mesh: "):
        read_hierarchy(tmp_path)
    (tmp_path / "_pool1.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"_pool1\.npy cannot be read as an array"):
        read_hierarchy(tmp_path)


def test_tokenizer_of_another_mesh_is_refused(sphere):
    steps = ((5, 5, 4),)
    layers = {"connections": ["pool0", "unpool0"], "channels": [2, 3], "n_bases": [2, 2], "residual_rates": [0, 0]}
    hierarchy = build_hierarchy(sphere.faces, len(sphere.vertices), steps)
    n = len(sphere.vertices)
    for mesh, words in (
        ({"template": np.zeros((6890, 3))}, r"template has shape \(6890, 3\)"),
        ({"keypoint_regressor": np.zeros((n, 24))}, rf"keypoint_regressor has shape \({n}, 24\)"),
        ({"faces": sphere.faces + 1}, rf"the faces name vertices 1\.\.{n}"),
    ):
        with pytest.raises(ValueError, match=f"are for meshes of {n} vertices, but {words}"):
            MeshVQVAE(hierarchy, **layers, **mesh)
