"""Make the synthetic images of demo_data/: larger than those of the training set, and of other people.

    python tools/demo_pictures.py [FOLDER]

Writes `synthetic_*.jpg`, and `boxes.json` for the image of two people.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from mega.bodies import AnnyBody
from mega.synthetic import SceneMaker, SceneSettings

_SIZES = ((640, 640), (480, 640), (540, 640), (640, 540))  # (w, h) px
_QUALITY = 88
_SETTINGS = SceneSettings(truncated=0.0, occluded=0.15, fill=(0.75, 0.95))
# (name, seed, people): chosen by eye among 24 for variety, before any prediction was made.
PICTURES = (
    ("standing", 13, 1),
    ("walking", 19, 1),
    ("reaching", 15, 1),
    ("sitting", 0, 1),
    ("stepping", 18, 1),
    ("kneeling", 20, 1),
    ("on_the_floor", 21, 1),
    ("two_people", 11, 2),
)


def make_demo_pictures(folder: Path) -> None:
    """Write the pictures and the boxes file into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    maker = SceneMaker(AnnyBody(), _SETTINGS, _SIZES)
    boxes = {}
    for name, seed, n_people in PICTURES:
        generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng([2026, seed])
        people = maker.sample_people(n_people, generator)
        picture, rows = maker.make(people, rng)
        file = folder / f"synthetic_{name}.jpg"
        cv2.imwrite(str(file), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if n_people > 1:
            boxes[file.name] = [row["box"].round(1).tolist() for row in rows]
    (folder / "boxes.json").write_text(json.dumps(boxes) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_demo_pictures(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_data"))
