"""Person detectors: boxes given by the user, the whole picture, or torchvision's Faster R-CNN.

They are called with a picture's path and the picture, opened or as pixels (h, w, 3) uint8 RGB, and return `Found`, or
raise InputError if the picture's boxes cannot be used.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mega.external_files import locate
from mega.photos import InputError, Picture

log = logging.getLogger(__name__)

PERSON = 1  # torchvision's label in COCO


class Found(NamedTuple):
    """The people in a picture."""

    boxes: np.ndarray  # (P, 4) = (x0, y0, x1, y1) px
    rough: bool = False  # whether the boxes should be tightened around the people


class WholeImage:
    """One person somewhere in the picture."""

    def __call__(self, path: Path, image: np.ndarray | Picture) -> Found:
        height, width = image.shape[:2]
        return Found(np.array([[0, 0, width, height]], np.float64), rough=True)


class GivenBoxes(WholeImage):
    """Boxes from a JSON file `{"name.jpg": [[x0, y0, x1, y1], …], …}`, px of the upright picture.

    In pictures that are not in the file, one person is expected anywhere.

    Args:
        path: the file; None reads `boxes.json` in the input folder if it exists.
        source: the demo's input: a folder, file or pattern.
    """

    def __init__(self, path: str | None = None, source: str = ""):
        input_path = locate(source)
        default = (input_path if input_path.is_dir() else input_path.parent) / "boxes.json"
        self.path = Path(path).expanduser() if path else default if default.is_file() else None
        self.boxes = _read_boxes(self.path) if self.path else {}

    def __call__(self, path: Path, image: np.ndarray | Picture) -> Found:
        if path.name not in self.boxes:
            return super().__call__(path, image)
        height, width = image.shape[:2]
        boxes = self.boxes[path.name]
        for box in boxes if isinstance(boxes, list) else [boxes]:
            if fault := _fault(box, width, height):
                raise InputError(f"{path}: the box {json.dumps(box)} in {self.path} {fault}.")
        return Found(np.array(boxes, np.float64).reshape(-1, 4))

    def warn_unmatched_boxes(self, pictures: Sequence[Path]) -> None:
        """Warn about boxes that belong to none of the pictures: a misspelt name would otherwise go unnoticed."""
        if unmatched := sorted(self.boxes.keys() - {path.name for path in pictures}):
            log.warning("%s has boxes for pictures that are not in the input: %s.", self.path, ", ".join(unmatched))


class TorchvisionDetector(WholeImage):
    """torchvision's Faster R-CNN. Its weights are fetched once; if that fails, it warns and takes the whole picture.

    Args:
        threshold: smallest score of a person.
        max_side: larger pictures are scaled to this size for the detection, px.
    """

    def __init__(self, threshold: float = 0.7, max_side: int = 800):
        from torchvision.models import detection

        self.threshold, self.max_side, self.model = threshold, max_side, None
        weights = detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights.DEFAULT
        options = {"weights": weights, "progress": False, "max_size": max_side}
        try:
            self.model = detection.fasterrcnn_mobilenet_v3_large_fpn(**options).eval()
        except (OSError, RuntimeError) as error:  # no network, or a broken download
            log.warning(
                "The weights of torchvision's detector could not be fetched from %s (%s); "
                "the whole picture is taken as one person. Give boxes=FILE for better results.",
                weights.url,
                error,
            )

    @torch.inference_mode()
    def __call__(self, path: Path, image: np.ndarray | Picture) -> Found:
        if self.model is None:
            return super().__call__(path, image)
        level = Picture.of(image).at_least(self.max_side)
        pixels = torch.from_numpy(np.ascontiguousarray(level.pixels)).permute(2, 0, 1) / 255
        found = self.model([pixels])[0]
        keep = (found["labels"] == PERSON) & (found["scores"] >= self.threshold)
        if not keep.any():
            log.warning("%s: the detector found nobody.", path)
        return Found(level.whole_boxes(found["boxes"][keep].double().numpy()))


def _read_boxes(path: Path) -> dict[str, list]:
    try:
        boxes = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The boxes file {path} cannot be read: {error.strerror}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The boxes file {path} is not JSON: {error}.") from None
    if not isinstance(boxes, dict):
        raise InputError(f'The boxes file {path} must hold {{"name.jpg": [[x0, y0, x1, y1], …], …}}.')
    return boxes


def _fault(box: object, width: int, height: int) -> str | None:
    """What is wrong with a box, as the end of a sentence."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(x) in (int, float) and math.isfinite(x) for x in box):
        return "is not four numbers [x0, y0, x1, y1]"
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return "has no area: x1 must be above x0 and y1 above y0"
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return f"lies outside the picture of {width}×{height} pixels"
    return None
