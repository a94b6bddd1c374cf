"""Posed and dressed bodies in scenes, rendered as annotated images."""

from mega.synthetic.dataset import build_split
from mega.synthetic.scene import SceneMaker, SceneSettings

__all__ = ["SceneMaker", "SceneSettings", "build_split"]
