"""What a printed number means: which joints, which root, which alignment. Every number carries its protocol's name."""

from dataclasses import dataclass
from typing import Literal

# Rows of the H36M regressor: right ankle, knee, hip; left hip, knee, ankle; right wrist, elbow, shoulder; left
# shoulder, elbow, wrist; neck; head.
_J14 = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)


@dataclass(frozen=True)
class Protocol:
    """How predicted and true meshes are compared.

    Attributes:
        name: printed with every number.
        joints: rows of the keypoint regressor that MPJPE and PA-MPJPE are taken over.
        root: rows whose mean both bodies are moved by before PVE and MPJPE; None for the mean of all vertices.
        pa_pve: PA-PVE aligns by the similarity fitted to the "vertices" or to the "joints".
        regressor: whose rows these are: H36M's 17, SMPL's 24, or the 23 keypoints that every body has (COCO's first).
    """

    name: str
    joints: tuple[int, ...]
    root: tuple[int, ...] | None
    pa_pve: Literal["vertices", "joints"] = "vertices"
    regressor: Literal["h36m", "smpl", "body"] = "h36m"


#: The 17 COCO keypoints of the first rows of a body's regressor, centred on the hips.
COCO17 = Protocol("coco17", joints=tuple(range(17)), root=(11, 12), regressor="body")
#: The published script: all 17 rows of the H36M regressor, centred on the vertices.
MEGA = Protocol("mega", joints=tuple(range(17)), root=None)
#: On 3DPW, as BEDLAM and CameraHMR: 14 of H36M's joints, centred on its joint 0, the pelvis.
STANDARD_3DPW = Protocol("standard", joints=_J14, root=(0,), pa_pve="joints")
#: On EMDB, as its official code: SMPL's 24 joints, centred on the hips.
STANDARD_EMDB = Protocol("standard", joints=tuple(range(24)), root=(1, 2), pa_pve="joints", regressor="smpl")
#: On 3DPW, as SPIN, WHAM and PromptHMR: 14 of H36M's joints, centred on the hips.
HIPS = Protocol("hips", joints=_J14, root=(_J14[2], _J14[3]), pa_pve="joints")

#: By which a training measures itself.
PROTOCOLS = {protocol.name: protocol for protocol in (COCO17, MEGA)}
