"""The Anny body (Naver, Apache-2.0; shapes from MakeHuman, CC0) in our frame: adults, without eyeballs and tongue.

Anny provides the rest mesh, the skeleton and the kinematics. Skinning is one sparse product per body here, which
takes 0.5 ms on one core and needs no compiler (Anny's own fast path compiles a Warp kernel at first use).
"""

import warnings

import roma
import torch
from torch import Tensor

from mega.bodies.body import KEYPOINTS, BodyModel

TOPOLOGY = "anny-noeyes-notongue"  # 13,348 vertices, one watertight component
SHAPE_LABELS = ("gender", "age", "muscle", "weight", "height", "proportions")

# Mean and deviation of the adult population, in Anny's [0, 1] parameters. Age 0.77 is 18 years, 0.83 is 64; the height
# of a grown-up is 0.35 to 0.4 in Anny's calibration on WHO tables, the other three are ours: broad, extremes rare.
_SHAPE_MEAN = (0.5, 0.80, 0.5, 0.5, 0.38, 0.5)
_SHAPE_STD = (0.0, 0.0, 0.2, 0.2, 0.09, 0.25)
_AGE_RANGE = (0.72, 0.90)

# Position of COCO's eye points relative to Anny's eye bones, metres, in our frame: measured on the topology with
# eyeballs, over 200 adults (it varies by 1 mm).
_EYE_POINT_OFFSET = (0.0, 0.0018, 0.0117)
_N_EYELID_VERTICES = 40


class AnnyBody(BodyModel):
    """Anny; keypoints are `KEYPOINTS`, shapes are in [0, 1] with the columns of `SHAPE_LABELS`.

    The first construction on a machine builds Anny's cache (about a minute, 800 MB in ~/.cache/anny or ANNY_CACHE_DIR);
    later ones take 0.3 s. A pose is one axis-angle vector per bone without the root, in the axes of the world at rest,
    so that (1, 0, 0) rotates every bone about the body's left-right axis.
    """

    name = "anny"
    n_shape = len(SHAPE_LABELS)

    def __init__(self) -> None:
        super().__init__()
        import anny  # imported here: inference needs only what the tokenizer's file holds

        model = anny.Anny(topology=TOPOLOGY, skinning_method="lbs").float().requires_grad_(False)
        self.anny = model
        self.joint_names = tuple(model.bone_labels[1:])
        self.joint_parents = tuple(parent - 1 for parent in model.bone_parents[1:])  # -1 is the root
        weights = model.dense_vertex_bone_weights  # (V, J+1)
        self.register_buffer("faces", model.faces.to(torch.int64), persistent=False)
        self.register_buffer("skinning_weights", weights, persistent=False)
        with warnings.catch_warnings():  # PyTorch calls the format beta at every first use
            warnings.simplefilter("ignore")
            self.register_buffer("sparse_skinning_weights", weights.to_sparse_csr(), persistent=False)

        mean_shape = torch.tensor([_SHAPE_MEAN])
        rest_pose = torch.zeros(1, self.n_pose_joints, 3)
        self.register_buffer("keypoint_regressor", self._fit_keypoint_regressor(), persistent=False)
        self.register_buffer("template", self(rest_pose, mean_shape)[0], persistent=False)
        # Heads of the bones in the rest pose (J, 3); not centred.
        _, poses = model.get_bone_transforms(
            torch.eye(4).expand(1, len(model.bone_labels), 4, 4), self._rest_model(mean_shape)["rest_bone_poses"]
        )
        self.register_buffer("rest_joints", _from_anny_axes(poses[0, 1:, :3, 3]), persistent=False)

    def forward(self, pose: Tensor, shape: Tensor) -> Tensor:
        """See `BodyModel`."""
        self.check_shapes(pose, shape)
        rest = self._rest_model(shape)
        local = torch.eye(4, device=pose.device).repeat(len(pose), self.n_pose_joints + 1, 1, 1)
        local[:, 1:, :3, :3] = roma.rotvec_to_rotmat(_to_anny_axes(pose))
        transforms, _ = self.anny.get_bone_transforms(local, rest["rest_bone_poses"])  # (B, J+1, 4, 4)
        vertices = self._skin(rest["rest_vertices"], transforms)  # (B, V, 3)
        return vertices - vertices.mean(dim=1, keepdim=True)

    def sample_shapes(self, n: int, generator: torch.Generator) -> Tensor:
        """n adults: (n, S). Gender and age are uniform, the rest is normal, cut to Anny's range."""
        shape = torch.tensor(_SHAPE_MEAN) + torch.tensor(_SHAPE_STD) * torch.randn(n, self.n_shape, generator=generator)
        uniform = torch.rand(n, 2, generator=generator)
        shape[:, 0] = uniform[:, 0]
        shape[:, 1] = _AGE_RANGE[0] + (_AGE_RANGE[1] - _AGE_RANGE[0]) * uniform[:, 1]
        return shape.clamp(0.0, 1.0)

    def _rest_model(self, shape: Tensor) -> dict[str, Tensor]:
        named = dict(zip(SHAPE_LABELS, shape.T, strict=True))
        return self.anny.get_rest_model(self.anny.get_phenotype_blendshape_coefficients(**named))

    def _skin(self, rest_vertices: Tensor, transforms: Tensor) -> Tensor:
        """Linear blend skinning, with the change from Anny's axes to ours."""
        rows = _from_anny_axes(transforms[:, :, :3].transpose(2, 3))  # (B, J+1, 4, 3): columns of each transform
        vertices = []
        for rest, row in zip(rest_vertices, rows.flatten(2), strict=True):  # one by one: each stays in the cache
            blended = (self.sparse_skinning_weights @ row).view(-1, 4, 3)  # (V, 4, 3)
            x, y, z = rest.split(1, dim=1)
            vertices.append(blended[:, 3] + blended[:, 0] * x + blended[:, 1] * y + blended[:, 2] * z)
        return torch.stack(vertices)

    def _fit_keypoint_regressor(self) -> Tensor:
        """Anny's own regressor (23, V), its two eye rows fitted anew on the vertices around the eyes.

        Anny's rows for the eyes use the eyeballs, which this topology lacks. The new rows are the smallest weights
        that follow the eye bones of 64 random adults; they stay within 1 mm of the points on the eyeballs.
        """
        from anny import KeypointsRegressor

        labels = [label for label in KEYPOINTS if not label.endswith("_eye")]
        regressor = torch.zeros(len(KEYPOINTS), len(self.skinning_weights))
        regressor[[KEYPOINTS.index(label) for label in labels]] = KeypointsRegressor.coco(
            self.anny, labels=labels
        ).regression_weights.float()

        shapes = self.sample_shapes(64, torch.Generator().manual_seed(0))
        rest = self._rest_model(shapes)
        vertices = _from_anny_axes(rest["rest_vertices"])  # (B, V, 3)
        heads = _from_anny_axes(rest["rest_bone_heads"])  # (B, J+1, 3)
        for label, bone in (("left_eye", "eye.L"), ("right_eye", "eye.R")):
            target = heads[:, self.anny.bone_labels.index(bone)] + torch.tensor(_EYE_POINT_OFFSET)  # (B, 3)
            nearest = (vertices.mean(0) - target.mean(0)).norm(dim=-1).argsort()[:_N_EYELID_VERTICES]
            weights = _affine_weights(vertices[:, nearest], target)
            regressor[KEYPOINTS.index(label), nearest] = weights
        return regressor / regressor.sum(dim=1, keepdim=True)


def _from_anny_axes(vectors: Tensor) -> Tensor:
    """Anny's axes (Z up, facing -Y) -> ours (Y up, facing +Z), on the last dimension."""
    x, y, z = vectors.unbind(-1)
    return torch.stack((x, z, -y), dim=-1)


def _to_anny_axes(vectors: Tensor) -> Tensor:
    """The inverse of `_from_anny_axes`."""
    x, y, z = vectors.unbind(-1)
    return torch.stack((x, -z, y), dim=-1)


def _affine_weights(points: Tensor, target: Tensor, ridge: float = 1e-6) -> Tensor:
    """Weights (N,) summing to one for which `weights @ points (B, N, 3)` follows `target (B, 3)` best.

    The ridge keeps them small: minimise mean ||sum_n w_n (p_n - t)||² + ridge ||w||² subject to sum(w) = 1.
    """
    offsets = (points - target[:, None]).transpose(1, 2).flatten(0, 1)  # (3B, N)
    normal = offsets.T @ offsets / len(points) + ridge * torch.eye(offsets.shape[1])
    weights = torch.linalg.solve(normal, torch.ones(len(normal)))
    return weights / weights.sum()
