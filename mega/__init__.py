"""MEGA: a masked generative autoencoder for human mesh recovery.

import mega
predictor = mega.load("anny_lite")
people = predictor(image, boxes)
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`mega.load`, imported when it is first used: `import mega` alone must not import PyTorch."""
    if name == "load":
        from mega.checkpoints import load

        return load
    raise AttributeError(f"module 'mega' has no attribute {name!r}")
