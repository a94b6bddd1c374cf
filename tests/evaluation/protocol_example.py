"""The same wrong body under each protocol of 3DPW: `python -m tests.evaluation.protocol_example` prints the table of
docs/evaluation.md.

The body is a stick figure: the 17 H36M joints of a person 1.75 m tall, and 9 points along each bone for its surface.
Its errors are made on purpose; only a real model on real images can show how large those of a model are.
"""

import roma
import torch
from torch import Tensor

from mega.console import format_table
from mega.metrics import HIPS, MEGA, STANDARD_3DPW, Protocol, mesh_errors

# Metres, x to the body's left, y up, z forward; in the order of the H36M regressor.
JOINTS = torch.tensor(
    [
        *([0, 0.98, 0], [-0.12, 0.93, 0], [-0.12, 0.50, 0.02], [-0.12, 0.08, 0]),  # pelvis, right hip, knee, ankle
        *([0.12, 0.93, 0], [0.12, 0.50, 0.02], [0.12, 0.08, 0]),  # left hip, knee, ankle
        *([0, 1.22, 0], [0, 1.48, 0], [0, 1.58, 0.09], [0, 1.75, 0.02]),  # spine, neck, nose, head
        *([0.18, 1.42, 0], [0.22, 1.15, 0], [0.22, 0.90, 0.05]),  # left shoulder, elbow, wrist
        *([-0.18, 1.42, 0], [-0.22, 1.15, 0], [-0.22, 0.90, 0.05]),  # right shoulder, elbow, wrist
    ],
    dtype=torch.float64,
)
BONES = (
    *((0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (7, 8), (8, 9), (9, 10)),
    *((8, 11), (11, 12), (12, 13), (8, 14), (14, 15), (15, 16)),
)
PELVIS, UPPER_BODY, LEFT_ARM = [0], list(range(7, 17)), [12, 13]


def surface(joints: Tensor) -> Tensor:
    """Joints (17, 3) and points along their bones: (161, 3), the joints first."""
    along = torch.linspace(0, 1, 11, dtype=joints.dtype)[1:-1, None]
    return torch.cat([joints, *(joints[a] + along * (joints[b] - joints[a]) for a, b in BONES)])


def turned(degrees: float, axis: int, about: Tensor, rows: list[int] | slice = slice(None)) -> Tensor:
    """The joints, of which some rows are turned about an axis through a point."""
    vector = torch.zeros(3, dtype=torch.float64)
    vector[axis] = torch.pi * degrees / 180
    joints = JOINTS.clone()
    joints[rows] = (joints[rows] - about) @ roma.rotvec_to_rotmat(vector).T + about
    return joints


def wrong_bodies() -> dict[str, Tensor]:
    """{what is wrong: joints (17, 3)}."""
    pelvis = JOINTS.clone()
    pelvis[PELVIS, 1] -= 0.03
    return {
        "whole body turned by 10°": turned(10, 1, JOINTS[0]),
        "10 % too large": 1.1 * JOINTS,
        "leans forward by 10° from the hips": turned(10, 0, JOINTS[0], UPPER_BODY),
        "left arm raised by 45°": turned(45, 2, JOINTS[11], LEFT_ARM),
        "pelvis 30 mm too low, all else right": pelvis,
    }


def errors_of(joints: Tensor, protocol: Protocol) -> dict[str, float]:
    """{metric: mm} of a wrong body against the right one."""
    regressor = torch.eye(len(JOINTS), len(surface(JOINTS)), dtype=torch.float64)
    return {k: float(v) for k, v in mesh_errors(surface(joints), surface(JOINTS), regressor, protocol).items()}


def example() -> str:
    """Errors in mm, PVE / MPJPE / PA-MPJPE, one column per protocol."""
    rows = []
    for name, joints in wrong_bodies().items():
        errors = [errors_of(joints, protocol) for protocol in (MEGA, STANDARD_3DPW, HIPS)]
        rows.append(
            [name, *(" / ".join(f"{e[metric]:.1f}" for metric in ("PVE", "MPJPE", "PA-MPJPE")) for e in errors)]
        )
    return format_table(("what is wrong", "`mega`", "`standard`", "`hips`"), rows, markdown=True)


if __name__ == "__main__":
    print(example())
