"""Every metric of every protocol on made-up bodies with known errors equals what is computed by hand."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mega.metrics import COCO17, HIPS, MEGA, STANDARD_3DPW, STANDARD_EMDB, Protocol, mesh_errors

V = 70
#: Every joint is a vertex of its own: H36M's are 0..16, SMPL's 17..40, the body's 41..63; the last six are none.
FIRST = {"h36m": 0, "smpl": 17, "body": 41}
N_JOINTS = {"h36m": 17, "smpl": 24, "body": 23}
NAMES = ("PVE", "MPJPE", "PA-MPJPE", "PA-PVE")
PROTOCOLS = [STANDARD_3DPW, STANDARD_EMDB, HIPS, MEGA, COCO17]
#: By hand, from the table of protocols: which vertices are joints, and which the root is the mean of.
J14 = [6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10]
JOINTS = [J14, list(range(17, 41)), J14, list(range(17)), list(range(41, 58))]
ROOTS = [[0], [18, 19], [4, 1], list(range(V)), [52, 53]]

each = pytest.mark.parametrize(
    ("protocol", "joints", "root"),
    list(zip(PROTOCOLS, JOINTS, ROOTS, strict=True)),
    ids=["3dpw", "emdb", "hips", "mega", "coco"],
)


def body() -> np.ndarray:
    """(V, 3) metres."""
    return np.random.default_rng(0).normal(0, 0.4, (V, 3))


def errors(predicted: np.ndarray, true: np.ndarray, protocol: Protocol) -> dict[str, float]:
    rows = np.arange(N_JOINTS[protocol.regressor]) + FIRST[protocol.regressor]
    regressor = torch.eye(V, dtype=torch.float64)[rows]
    found = mesh_errors(torch.from_numpy(predicted)[None], torch.from_numpy(true)[None], regressor, protocol)
    return {name: value.item() for name, value in found.items()}


@each
def test_a_shift_costs_nothing(protocol, joints, root) -> None:
    true = body()
    assert errors(true + np.array([3.0, -2.0, 9.0]), true, protocol) == pytest.approx(dict.fromkeys(NAMES, 0), abs=1e-6)


@each
def test_a_rotation(protocol, joints, root) -> None:
    """A quarter turn about z moves a point by sqrt(2) times its distance from the axis through the root."""
    true = body()
    turned = true @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    from_axis = 1000 * np.sqrt(2) * np.linalg.norm((true - true[root].mean(0))[:, :2], axis=1)
    expected = {"PVE": from_axis.mean(), "MPJPE": from_axis[joints].mean(), "PA-MPJPE": 0, "PA-PVE": 0}
    assert errors(turned, true, protocol) == pytest.approx(expected, abs=1e-6)


@each
def test_a_scale(protocol, joints, root) -> None:
    """A tenth larger: a point is off by a tenth of its distance from the root."""
    true = body()
    off = 100 * np.linalg.norm(true - true[root].mean(0), axis=1)
    expected = {"PVE": off.mean(), "MPJPE": off[joints].mean(), "PA-MPJPE": 0, "PA-PVE": 0}
    assert errors(1.1 * true, true, protocol) == pytest.approx(expected, abs=1e-6)


@each
def test_one_joint_off(protocol, joints, root) -> None:
    """The first joint is 30 cm off, and no other vertex: where it is a part of the root, all others are, too."""
    true, moved = body(), joints[0]
    predicted = true.copy()
    predicted[moved] += [0, 0.3, 0]
    root_moves = 300 / len(root) if moved in root else 0
    off = np.full(V, root_moves)
    off[moved] = 300 - root_moves
    found = errors(predicted, true, protocol)
    assert found["PVE"] == pytest.approx(off.mean(), rel=1e-6)
    assert found["MPJPE"] == pytest.approx(off[joints].mean(), rel=1e-6)
    by_joints = aligned(predicted, true, joints)
    by_protocol = by_joints if protocol.pa_pve == "joints" else aligned(predicted, true, list(range(V)))
    assert found["PA-MPJPE"] == pytest.approx(distance(by_joints, true)[joints].mean(), rel=1e-6)
    assert found["PA-PVE"] == pytest.approx(distance(by_protocol, true).mean(), rel=1e-6)


def aligned(predicted: np.ndarray, true: np.ndarray, by: list[int]) -> np.ndarray:
    """The similarity that brings some points nearest to the truth, applied to all (Kabsch, by another library)."""
    center, true_center = predicted[by].mean(0), true[by].mean(0)
    rotation, _ = Rotation.align_vectors(true[by] - true_center, predicted[by] - center)
    turned = rotation.apply(predicted - center)
    scale = (turned[by] * (true[by] - true_center)).sum() / (turned[by] ** 2).sum()
    return scale * turned + true_center


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return 1000 * np.linalg.norm(a - b, axis=1)


@each
def test_alignment_by_joints_or_by_vertices(protocol, joints, root) -> None:
    """A vertex that is no joint: it costs PA-MPJPE nothing, and PA-PVE all of it where the joints align."""
    true = body()
    predicted = true.copy()
    predicted[V - 1] += [0.7, 0, 0]
    found = errors(predicted, true, protocol)
    assert found["PA-MPJPE"] == pytest.approx(0, abs=1e-6)
    if protocol.pa_pve == "joints":
        assert found["PA-PVE"] == pytest.approx(700 / V, rel=1e-6)
    else:
        assert abs(found["PA-PVE"] - 700 / V) > 0.1
    assert (protocol.pa_pve == "vertices") == (protocol in (MEGA, COCO17))
