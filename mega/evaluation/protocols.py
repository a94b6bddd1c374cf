"""What a printed number means: which joints, which root, which alignment. Every number carries its protocol's name."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Protocol:
    """How predicted and true meshes are compared.

    Attributes:
        name: printed with every number.
        joints: rows of the keypoint regressor that MPJPE and PA-MPJPE are taken over.
        root: rows whose mean both bodies are moved by before PVE and MPJPE; None for the mean of all vertices.
        pa_pve: PA-PVE aligns by the similarity fitted to the "vertices" or to the "joints".
    """

    name: str
    joints: tuple[int, ...]
    root: tuple[int, ...] | None
    pa_pve: Literal["vertices", "joints"] = "vertices"


#: The 17 COCO keypoints of the first rows of a body's regressor, centred on the hips.
COCO17 = Protocol("coco17", joints=tuple(range(17)), root=(11, 12))
#: The published script: all 17 rows of the H36M regressor, centred on the vertices.
MEGA = Protocol("mega", joints=tuple(range(17)), root=None)

PROTOCOLS = {protocol.name: protocol for protocol in (COCO17, MEGA)}
