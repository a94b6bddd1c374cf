"""Posed and dressed bodies in scenes, rendered into annotated pictures."""

from mega.synthetic.dataset import build_dataset
from mega.synthetic.scene import Person, SceneMaker, SceneSettings

__all__ = ["Person", "SceneMaker", "SceneSettings", "build_dataset"]
