"""Bodies and poses, as properties: the frame, canonical meshes, hinges that bend the right way, left-right symmetry."""

import hashlib

import pytest
import roma
import torch

from mega.bodies import KEYPOINTS, MIRRORED_KEYPOINTS, AnnyBody, PoseSampler
from mega.bodies.pose_sampler import _CONTACT_TOLERANCE, ANGLES, TRUNK, SelfContact

MIRROR = torch.tensor([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def body() -> AnnyBody:
    return AnnyBody()


@pytest.fixture(scope="module")
def sampler(body) -> PoseSampler:
    return PoseSampler(body)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def keypoints_of(body, sampler, **degrees) -> dict[str, torch.Tensor]:
    """Keypoints of the mean adult in the neutral stance but for the given angles (`__` stands for the side's dot)."""
    angles = torch.zeros(1, len(ANGLES))
    for name, value in degrees.items():
        angles[0, list(ANGLES).index(name.replace("__", "."))] = value
    shape = torch.tensor([[0.5, 0.8, 0.5, 0.5, 0.4, 0.5]])
    points = body.keypoints(body(sampler.rig.to_pose(angles), shape))[0]
    return dict(zip(KEYPOINTS, points, strict=True))


def test_frame(body):
    points = dict(zip(KEYPOINTS, body.keypoints(body.template), strict=True))
    assert points["left_shoulder"][0] > 0.1 > -0.1 > points["right_shoulder"][0]
    assert points["nose"][1] > points["left_hip"][1] > points["left_ankle"][1]
    assert points["left_big_toe"][2] > points["left_heel"][2] + 0.15  # faces +Z
    assert 1.5 < body.template[:, 1].max() - body.template[:, 1].min() < 1.9


def test_meshes_are_canonical(body, sampler, generator):
    vertices = body(sampler.sample(6, generator), body.sample_shapes(6, generator))
    assert vertices.shape == (6, 13348, 3)
    assert vertices.dtype == torch.float32
    assert body.faces.shape == (26692, 3)
    assert vertices.mean(dim=1).abs().max() < 1e-5
    points = dict(zip(KEYPOINTS, body.keypoints(vertices).unbind(1), strict=True))
    across = torch.nn.functional.normalize(points["left_hip"] - points["right_hip"], dim=-1)
    assert (across[:, 0] > 0.9).all()  # the pelvis hangs on the root, which never turns


def test_agrees_with_anny_itself(body, generator):
    pose = 0.3 * torch.randn(2, body.n_pose_joints, 3, generator=generator)
    shape = body.sample_shapes(2, generator)
    transforms = torch.eye(4).repeat(2, body.n_pose_joints + 1, 1, 1)
    transforms[:, 1:, :3, :3] = roma.rotvec_to_rotmat(torch.stack((pose[..., 0], -pose[..., 2], pose[..., 1]), -1))
    labels = ("gender", "age", "muscle", "weight", "height", "proportions")
    theirs = body.anny(transforms, dict(zip(labels, shape.T, strict=True)))["vertices"]
    theirs = torch.stack((theirs[..., 0], theirs[..., 2], -theirs[..., 1]), -1)
    torch.testing.assert_close(body(pose, shape), theirs - theirs.mean(1, keepdim=True), atol=1e-5, rtol=0)


def test_keypoint_regressor(body):
    assert body.keypoint_regressor.shape == (23, 13348)
    torch.testing.assert_close(body.keypoint_regressor.sum(1), torch.ones(23))
    points = dict(zip(KEYPOINTS, body.keypoints(body.template), strict=True))
    eyes = points["left_eye"] - points["right_eye"]
    assert 0.05 < eyes[0] < 0.075
    assert eyes[1:].abs().max() < 0.002
    assert points["left_ear"][0] > points["left_eye"][0] > points["nose"][0]


def test_adults_are_adults(body, generator):
    vertices = body(torch.zeros(60, body.n_pose_joints, 3), body.sample_shapes(60, generator))
    height = vertices[..., 1].amax(1) - vertices[..., 1].amin(1)
    assert 1.35 < height.min() < height.max() < 2.15
    assert 1.6 < height.mean() < 1.8


def test_wrong_shapes_are_named(body):
    with pytest.raises(ValueError, match="pose"):
        body(torch.zeros(2, 5, 3), torch.zeros(2, 6))


def test_hinges_bend_the_right_way(body, sampler):
    still = keypoints_of(body, sampler)
    assert (still["left_wrist"] - still["left_shoulder"])[1] < -0.4  # arms hang

    knee = keypoints_of(body, sampler, knee__L=90.0)
    shin = knee["left_ankle"] - knee["left_knee"]
    assert shin[2] < -0.3  # backward
    assert abs(shin[1]) < 0.1

    elbow = keypoints_of(body, sampler, elbow__R=90.0)
    forearm = elbow["right_wrist"] - elbow["right_elbow"]
    assert forearm[2] > 0.2  # forward
    bent = keypoints_of(body, sampler, elbow__R=140.0)
    assert (bent["right_wrist"] - bent["right_shoulder"]).norm() < 0.3  # and up to the shoulder

    hip = keypoints_of(body, sampler, hip_flex__L=90.0)
    assert (hip["left_knee"] - hip["left_hip"])[2] > 0.3
    raised = keypoints_of(body, sampler, shoulder_abduct__L=90.0, shoulder_flex__R=170.0)
    assert raised["left_wrist"][0] > 0.5
    assert raised["right_wrist"][1] > raised["nose"][1]
    bow = keypoints_of(body, sampler, spine_bend=60.0)
    assert (bow["nose"] - bow["left_hip"])[2] > 0.3
    ankle = keypoints_of(body, sampler, ankle__L=20.0)
    assert (ankle["left_big_toe"] - ankle["left_heel"])[1] > (still["left_big_toe"] - still["left_heel"])[1] + 0.03


def test_mirrored_pose_gives_the_mirrored_body(body, sampler, generator):
    pose, shape = sampler.sample(4, generator), body.sample_shapes(4, generator)
    mirrored = body.keypoints(body(body.mirror_pose(pose), shape))
    expected = body.keypoints(body(pose, shape))[:, MIRRORED_KEYPOINTS] * MIRROR
    assert (mirrored - expected).norm(dim=-1).max() < 2e-3  # Anny's left and right differ by less than that
    torch.testing.assert_close(body.mirror_pose(body.mirror_pose(pose)), pose)


def test_mirrored_angles_give_the_mirrored_pose(body, sampler, generator):
    angles = sampler.sample_angles(8, generator)
    mirrored = sampler.rig.to_pose(sampler.rig.mirror_angles(angles))
    torch.testing.assert_close(mirrored, body.mirror_pose(sampler.rig.to_pose(angles)), atol=1e-4, rtol=0)


def test_left_and_right_are_equally_likely(sampler, generator):
    angles = sampler.sample_angles(20000, generator)
    mirrored = sampler.rig.mirror_angles(angles)
    spread = angles.std(0)
    assert ((angles.mean(0) - mirrored.mean(0)).abs() / spread).max() < 0.05
    assert (angles[:, : len(TRUNK)].std(0) > 1.0).all()


def test_poses_are_reproducible_within_limits_and_free_of_contact(body, sampler):
    first, second = (sampler.sample(500, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (500, body.n_pose_joints, 3)
    assert first.isfinite().all()
    angles = sampler.sample_angles(500, torch.Generator().manual_seed(3))
    low, high, _ = torch.tensor(list(ANGLES.values())).T
    assert (angles >= low).all()
    assert (angles <= high).all()
    deep = SelfContact(body).depth(first) > _CONTACT_TOLERANCE
    assert deep.float().mean() < 0.02


def test_root_orientations_cover_all_yaws_about_upright(sampler, generator):
    rotation = roma.rotvec_to_rotmat(sampler.sample_root_orient(4000, generator))
    up, facing = rotation[:, :, 1], rotation[:, :, 2]  # the body's axes in the camera: x right, y down, z forward
    tilt = torch.rad2deg(torch.acos((-up[:, 1]).clamp(-1, 1)))
    assert 5 < tilt.median() < 25
    assert (tilt > 60).float().mean() < 0.08
    yaw = torch.atan2(facing[:, 0], -facing[:, 2])  # 0: towards the camera
    counts = torch.histc(yaw, bins=8, min=-torch.pi, max=torch.pi)
    assert counts.min() > 0.8 * counts.mean()


def test_the_pose_catalogue_is_unchanged(sampler):
    """Key poses, their weights, and what a seed draws from them, from the catalogue before it was moved to YAML."""
    tables = b"".join(table.numpy().tobytes() for table in (*sampler._stances, *sampler._gestures))
    assert hashlib.sha256(tables).hexdigest()[:16] == "f4570a78431d6832"
    angles = sampler.sample_angles(3, torch.Generator().manual_seed(7))
    expected = torch.tensor([[12.387225, 4.851203, -0.127437], [12.09925, 73.715065, -1.079754]])
    torch.testing.assert_close(angles[:2, [0, 7, 20]], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(angles.sum(1), torch.tensor([417.83069, 325.76993, 773.96283]), atol=1e-3, rtol=0)
