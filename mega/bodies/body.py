"""The interface of all body models, and the coordinate frame that they share.

Frame: metres, Y up, facing +Z, the body's left on +X (the frame of SMPL). A *canonical* mesh has root rotation zero and
is centred on the mean of its vertices; in the camera frame it is `R @ canonical + t`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

#: COCO's 17 keypoints, then six of the feet: the rows of every body's `keypoint_regressor`.
KEYPOINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee"),
    *("left_ankle", "right_ankle", "left_big_toe", "right_big_toe", "left_small_toe", "right_small_toe"),
    *("left_heel", "right_heel"),
)


def mirrored_names(names: Sequence[str], sides: tuple[str, str]) -> list[int]:
    """Index of each name's mirror image in `names`; `sides` are the parts of a name that mark left and right."""
    left, right = sides
    swapped = [n.replace(left, right) if left in n else n.replace(right, left) for n in names]
    return [list(names).index(name) for name in swapped]


#: Rows of `KEYPOINTS` after mirroring: keypoints[MIRRORED_KEYPOINTS] with x negated.
MIRRORED_KEYPOINTS = mirrored_names(KEYPOINTS, ("left_", "right_"))


class BodyModel(Protocol):
    """A posed and shaped human body with a fixed topology.

    Attributes:
        name: used in annotations and weights files.
        joint_names: (J,) names of the posed joints, without the root; sides end in `.L` and `.R`.
        n_pose_joints: J.
        n_shape: S, the length of a shape vector.
        faces: (F, 3) int64.
        template: (V, 3) the mean adult at rest, canonical.
        keypoint_regressor: (23, V), the rows of `KEYPOINTS`; each sums to one.
    """

    name: str
    joint_names: Sequence[str]
    n_pose_joints: int
    n_shape: int
    faces: Tensor
    template: Tensor
    keypoint_regressor: Tensor

    def __call__(self, pose: Tensor, shape: Tensor) -> Tensor:
        """Pose (B, J, 3), axis-angle local to the parent, and shape (B, S) -> canonical vertices (B, V, 3) float32."""

    def mirror_pose(self, pose: Tensor) -> Tensor:
        """The pose (..., J, 3) mirrored: left and right change places."""

    def keypoints(self, vertices: Tensor) -> Tensor:
        """Vertices (..., V, 3) -> the 23 keypoints (..., 23, 3) in the same frame."""

    def sample_shapes(self, n: int, generator: torch.Generator) -> Tensor:
        """n adults: (n, S)."""
