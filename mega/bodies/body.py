"""The interface of all body models, and the coordinate frame that they share.

Frame: metres, Y up, facing +Z, the body's left on +X (the frame of SMPL). A *canonical* mesh has root rotation zero and
is centred on the mean of its vertices; in the camera frame it is `R @ canonical + t`.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: COCO's 17 keypoints, then six of the feet.
KEYPOINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee"),
    *("left_ankle", "right_ankle", "left_big_toe", "right_big_toe", "left_small_toe", "right_small_toe"),
    *("left_heel", "right_heel"),
)


def _mirrored(names: Sequence[str]) -> list[int]:
    """Index of each name's mirror image; `left_` and `right_`, or `.L` and `.R`, mark the sides."""
    other = {"left_": "right_", "right_": "left_", ".L": ".R", ".R": ".L"}
    return [names.index(re.sub(r"^left_|^right_|\.[LR]$", lambda side: other[side[0]], name)) for name in names]


#: Rows of `KEYPOINTS` after mirroring: keypoints[MIRRORED_KEYPOINTS] with x negated.
MIRRORED_KEYPOINTS = _mirrored(KEYPOINTS)


class BodyModel(nn.Module):
    """A human body with a fixed topology: pose (B, J, 3) and shape (B, S) -> canonical vertices (B, V, 3) float32.

    A pose is axis-angle in radians, local to the parent.

    Attributes:
        name: used in annotations and weights files.
        joint_names: (J,) names of the posed joints, without the root.
        n_shape: S, the length of a shape vector.
        faces: (F, 3) int64.
        template: (V, 3) the mean adult at rest, canonical.
        keypoint_regressor: (K, V), one row per keypoint, each of which sums to one.
    """

    name: str
    joint_names: tuple[str, ...]
    n_shape: int
    faces: Tensor
    template: Tensor
    keypoint_regressor: Tensor

    @property
    def n_pose_joints(self) -> int:
        """J."""
        return len(self.joint_names)

    def mirror_pose(self, pose: Tensor) -> Tensor:
        """The pose (..., J, 3) mirrored: left and right change places."""
        return pose[..., _mirrored(self.joint_names), :] * pose.new_tensor([1.0, -1.0, -1.0])

    def keypoints(self, vertices: Tensor) -> Tensor:
        """Vertices (..., V, 3) -> keypoints (..., K, 3) in the same frame."""
        return self.keypoint_regressor @ vertices

    def sample_shapes(self, n: int, generator: torch.Generator) -> Tensor:
        """n adults: (n, S)."""
        raise NotImplementedError

    def check_shapes(self, pose: Tensor, shape: Tensor) -> None:
        """Raise ValueError unless the pose is (B, J, 3) and the shape (B, S)."""
        if pose.shape[1:] != (self.n_pose_joints, 3) or shape.shape != (len(pose), self.n_shape):
            raise ValueError(
                f"the {self.name} body takes a pose (B, {self.n_pose_joints}, 3) and a shape (B, {self.n_shape}), "
                f"but was given {tuple(pose.shape)} and {tuple(shape.shape)}"
            )
