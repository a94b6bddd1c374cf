"""From photographs to meshes: reading, boxes, prediction, export."""

from mega.inference.demo import Demo, run_demo
from mega.inference.images import InputError, find_pictures, read_picture
from mega.inference.predictor import People, Predictor, Sampling

__all__ = [
    "Demo",
    "InputError",
    "People",
    "Predictor",
    "Sampling",
    "find_pictures",
    "read_picture",
    "run_demo",
]
