"""How good the meshes are: metrics and the protocols that give them their meaning."""

from mega.evaluation.metrics import best_of, keypoint2d_error, mesh_errors
from mega.evaluation.protocols import COCO17, MEGA, PROTOCOLS, Protocol
from mega.geometry import mean_distance, sample_spread

__all__ = [
    "COCO17",
    "MEGA",
    "PROTOCOLS",
    "Protocol",
    "best_of",
    "keypoint2d_error",
    "mean_distance",
    "mesh_errors",
    "sample_spread",
]
