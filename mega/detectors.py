"""Person detectors: boxes given by the user, the whole picture, MoveNet MultiPose, or torchvision's Faster R-CNN.

They are called with a picture's path and the picture, opened or as pixels (h, w, 3) uint8 RGB, and return `Found`, or
raise InputError if the picture's boxes cannot be used.
"""

import json
import logging
import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from mega.backbones.movenet import MultiPose, load_movenet
from mega.external_files import MOVENET, as_on_disk, locate
from mega.photos import InputError, Picture, input_folder, shorten

log = logging.getLogger(__name__)

PERSON = 1  # torchvision's label in COCO
_SAME_PERSON = 0.5  # overlap (intersection over union) of two boxes


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
    """Boxes from a JSON file, px of the upright picture. In pictures without boxes, one person is expected anywhere.

    The file holds `{"name.jpg": [[x0, y0, x1, y1], …], …}`, or COCO instances, or COCO results. Names are paths from
    the input folder or from the file's folder; the last part of a path suffices if only one picture has it. In COCO
    results, images have numbers: those of an instances file, or those in the pictures' names (7.jpg, 000000000007.jpg).

    Args:
        path: the file; None reads `boxes.json` in the input folder if it exists.
        source: the demo's input: a folder, file or pattern.
        threshold: smallest score of a person in COCO's files.
        annotations: file of COCO instances that has the names of the images in COCO results; None looks for one in the
            folder of `path`.
    """

    def __init__(
        self, path: str | None = None, source: str = "", threshold: float = 0.5, annotations: str | None = None
    ):
        self.folder = input_folder(source)
        default = self.folder / "boxes.json"
        self.path = locate(path) if path else default if default.is_file() else None
        self.listed = _read_boxes(self.path, threshold, annotations) if self.path else []
        self.of_picture: dict[Path, Listed | None] = {}

    def match(self, pictures: Sequence[Path]) -> None:
        """Find the entry of each picture that will be asked for; warn about entries and pictures that are left.

        Raises InputError if an entry may mean several pictures, or several entries mean one.
        """
        self.of_picture = dict.fromkeys(pictures)
        if not self.path:
            return
        by_path = {_spelled(path): path for path in pictures}
        by_name, by_number = defaultdict(list), defaultdict(list)
        for spelled, path in by_path.items():
            by_name[spelled.rpartition("/")[2]].append(spelled)
            for name in {_normalized(path.stem), _number(path)}:
                by_number[name].append(path)
        unmatched = []
        for entry in self.listed:
            name = _normalized(entry.name)
            places = [folder / entry.name for folder in (self.folder, self.path.parent)]
            found = {by_path[place] for place in map(_spelled, places) if place in by_path}
            if not found and entry.is_number:
                found = set(by_number[name])
            elif not found:
                namesakes = by_name[name.rpartition("/")[2]]
                found = {by_path[spelled] for spelled in namesakes if spelled.endswith(f"/{name}")}
            if len(found) > 1:
                several = shorten(sorted(map(str, found)))
                raise InputError(f"{self.path}: {entry.name} may be {several}; write its path from {self.folder}.")
            for path in found:
                if other := self.of_picture[path]:
                    raise InputError(f"{self.path}: {other.name} and {entry.name} both mean {path}.")
                self.of_picture[path] = entry
            if not found and not any(as_on_disk(place).is_file() for place in places):
                unmatched.append(entry.name)
        if unmatched:
            log.warning("%s has boxes for pictures that are not in the input: %s.", self.path, shorten(unmatched))
        if empty := [str(path) for path, entry in self.of_picture.items() if entry and not entry.boxes]:
            log.warning("%s has nobody in %s.", self.path, shorten(empty))
        if left := [str(path) for path, entry in self.of_picture.items() if entry is None]:
            message = "%s has no boxes for %d of %d pictures; one person is expected in each of them: %s."
            log.warning(message, self.path, len(left), len(pictures), shorten(left))

    def __call__(self, path: Path, image: np.ndarray | Picture) -> Found:
        entry = self.of_picture[path]
        if entry is None:
            return super().__call__(path, image)
        height, width = image.shape[:2]
        if entry.size not in (None, (width, height)):
            meant = "×".join(map(str, entry.size))
            raise InputError(f"{path} has {width}×{height} pixels, but its boxes in {self.path} are for {meant}.")
        boxes = entry.boxes
        for box in boxes:
            if fault := _fault(box, width, height):
                raise InputError(f"{path}: the box {json.dumps(box)} in {self.path} {fault}.")
        return Found(np.array(boxes, np.float64).reshape(-1, 4))


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


class MoveNetDetector:
    """MoveNet MultiPose, whose weights come with this repository.

    Args:
        weights: a file of tools/convert_movenet.py; None: the one that comes with this repository.
        threshold: smallest score of a person.
        sides: longer sides that the picture is scaled to, px. Each view finds people of another size; what two views
            find twice is kept once.
        people: how many people are searched for in a view.

    Raises FileNotFoundError, or ValueError that names the file and what is wrong with it.
    """

    def __init__(
        self,
        weights: str | None = None,
        threshold: float = 0.15,
        sides: Sequence[int] = (256, 512),
        people: int = 20,
    ):
        self.net = load_movenet(MultiPose(), locate(weights) if weights else MOVENET / "multipose.safetensors")
        self.threshold, self.sides, self.people = threshold, tuple(sides), people

    @torch.inference_mode()
    def __call__(self, path: Path, image: np.ndarray | Picture) -> Found:
        level = Picture.of(image).at_least(max(self.sides))
        views = [self._look(level.pixels, side) for side in self.sides]
        boxes, scores = (torch.cat(parts) for parts in zip(*views, strict=True))
        boxes = boxes[nms(boxes, scores, _SAME_PERSON)]
        if not len(boxes):
            log.warning("%s: the detector found nobody.", path)
        return Found(level.whole_boxes(boxes.double().numpy()))

    def _look(self, pixels: np.ndarray, side: int) -> tuple[Tensor, Tensor]:
        """Boxes (P, 4) px and scores (P,) of the people in pixels (h, w, 3), scaled to a longer side."""
        scale = side / max(pixels.shape)
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=interpolation)
        padding = [(0, -n % 32) for n in small.shape[:2]]
        view = torch.from_numpy(np.pad(small, (*padding, (0, 0)))).permute(2, 0, 1)[None].float()
        (boxes,), (scores,), _ = self.net.people(view, self.people)
        certain = scores >= self.threshold
        return boxes[certain] / scale, scores[certain]


class Listed(NamedTuple):
    """What a boxes file has for a picture."""

    name: str
    boxes: list
    size: tuple[int, int] | None = None  # width and height of the picture that the boxes are for
    is_number: bool = False  # whether the name is COCO's number of an image


def _read_boxes(path: Path, threshold: float, annotations: str | None) -> list[Listed]:
    data = _read_json(path)
    if _is_coco(data):
        return _read_coco(path, data, threshold, annotations)
    if not isinstance(data, dict):
        raise InputError(
            f'The boxes file {path} must hold {{"name.jpg": [[x0, y0, x1, y1], …], …}}, COCO instances or COCO results.'
        )
    lists = {name: boxes if isinstance(boxes, list) else [boxes] for name, boxes in data.items()}
    return [Listed(name, [boxes] if _is_box(boxes) else boxes) for name, boxes in lists.items()]


def _read_json(path: Path) -> object:
    """JSON in any UTF encoding, with or without a byte order mark; a name that is there twice is refused."""

    def checked(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(unique := dict(pairs)) < len(pairs):
            twice = next(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
            raise InputError(f"The boxes file {path} has the name {twice} more than once.")
        return unique

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=checked)
    except OSError as error:
        raise InputError(f"The boxes file {path} cannot be read: {error.strerror}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"The boxes file {path} is not JSON: {error}.") from None


def _is_coco(data: object) -> bool:
    """Whether JSON is COCO's: a dict of instances, or a list of results."""
    if isinstance(data, dict):
        return any(isinstance(data.get(key), list) for key in ("images", "annotations"))
    return isinstance(data, list) and all(isinstance(each, dict) and "image_id" in each for each in data)


def _read_coco(path: Path, data: dict | list, threshold: float, annotations: str | None) -> list[Listed]:
    """The boxes of people in COCO instances or results; a warning says what is left out."""
    instances = data if isinstance(data, dict) else {}
    results = data if isinstance(data, list) else data.get("annotations")
    if not isinstance(results, list):
        raise InputError(f"{path} lists images of COCO, but no boxes: it has no annotations.")
    source = path
    if annotations:
        source = locate(annotations)
        instances = _read_json(source)
    elif "images" not in instances and len(found := _instances_in(path.parent)) == 1:
        ((source, instances),) = found.items()
        log.warning("%s: the names of the pictures are taken from %s.", path, source)
    try:
        images = {str(image["id"]): image for image in instances.get("images", [])}
        names = {number: str(image["file_name"]) for number, image in images.items()}
        sizes = {number: (image.get("width"), image.get("height")) for number, image in images.items()}
        categories = {category["id"]: str(category["name"]) for category in instances.get("categories", [])}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{source} does not hold COCO instances: {error!r}.") from None
    people = [number for number, name in categories.items() if name.casefold() == "person"]
    if categories and not people:
        raise InputError(f"{source} has no category person, only {shorten(list(categories.values()))}.")

    boxes = {number: [] for number in images} if data is instances else {}
    left_out, others = Counter(), []
    for result in results:
        if not isinstance(result, dict) or "image_id" not in result or "bbox" not in result:
            raise InputError(f"{path}: a COCO box needs image_id and bbox, but one is {json.dumps(result)[:100]}.")
        score, category, box = result.get("score", 1), result.get("category_id", PERSON), result["bbox"]
        if not isinstance(score, int | float):
            raise InputError(f"{path}: the score {json.dumps(score)} is not a number.")
        of_image = boxes.setdefault(str(result["image_id"]), [])
        if category not in (people or [PERSON]):
            left_out["of other categories than person"] += 1
            others.append(str(category))
        elif result.get("iscrowd"):
            left_out["around crowds"] += 1
        elif score < threshold:
            left_out[f"with scores below detector.threshold={threshold:g}"] += 1
        else:  # what is not a box stays as it is, for the message about it
            of_image.append([*box[:2], box[0] + box[2], box[1] + box[3]] if _is_box(box) else box)
    if others and len(others) == len(results) and not people:
        raise InputError(f"{path} has no boxes of category {PERSON} (person), only of {shorten(sorted({*others}))}.")
    if left_out:
        log.warning("%s: left out are %s.", path, ", ".join(f"{n} boxes {which}" for which, n in left_out.items()))
    known = {number: size for number, size in sizes.items() if all(size)}
    return [
        Listed(names.get(number, number), of_image, known.get(number), is_number=not images)
        for number, of_image in boxes.items()
    ]


def _instances_in(folder: Path) -> dict[Path, dict]:
    """The files of COCO instances in a folder, and what they hold."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(InputError):
            data = _read_json(path)
            if isinstance(data, dict) and isinstance(data.get("images"), list):
                found[path] = data
    return found


def _number(path: Path) -> str | None:
    """COCO's number of an image in the name of a picture: 7.jpg, 000000000007.jpg, COCO_val2014_000000000007.jpg."""
    digits = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", path.stem, re.ASCII)
    return digits[1] if digits else None


def _normalized(name: str | Path) -> str:
    """A path in one spelling: composed accents (macOS writes decomposed ones), /, and no . and .. in it."""
    return os.path.normpath(unicodedata.normalize("NFC", str(name).replace("\\", "/"))).replace("\\", "/")


def _spelled(path: Path) -> str:
    return _normalized(path.absolute())


def _is_box(box: object) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) and math.isfinite(x) for x in box)


def _fault(box: object, width: int, height: int) -> str | None:
    """What is wrong with a box, as the end of a sentence."""
    if not _is_box(box):
        return "is not four numbers [x0, y0, x1, y1]"
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return "has no area: x1 must be above x0 and y1 above y0"
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return f"lies outside the picture of {width}×{height} pixels"
    return None
