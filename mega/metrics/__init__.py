"""How good meshes are: errors and the protocols that give them their meaning."""

from mega.metrics.errors import best_of, keypoint2d_error, mesh_errors, root_of
from mega.metrics.protocols import COCO17, HIPS, MEGA, PROTOCOLS, STANDARD_3DPW, STANDARD_EMDB, Protocol

__all__ = [
    "COCO17",
    "HIPS",
    "MEGA",
    "PROTOCOLS",
    "STANDARD_3DPW",
    "STANDARD_EMDB",
    "Protocol",
    "best_of",
    "keypoint2d_error",
    "mesh_errors",
    "root_of",
]
