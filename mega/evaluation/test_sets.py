"""The sets of people that models are tested on: crops, true meshes, and the protocols that apply to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from mega.bodies import KEYPOINTS, BodyModel
from mega.bodies.smplh import SMPL_JOINTS, SMPLHBody
from mega.data import SMPLImages, SyntheticImages
from mega.data.smpl_images import keypoint_regressor
from mega.external_files import find_annotations
from mega.metrics import COCO17, HIPS, MEGA, STANDARD_3DPW, STANDARD_EMDB, Protocol
from mega.predictor import Crop
from mega_common.files import read_arrays

_JOINTS = {
    "body": KEYPOINTS,
    "smpl": ("pelvis", *SMPL_JOINTS, "left_hand", "right_hand"),
    "h36m": (
        *("pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "spine", "neck"),
        *("nose", "head", "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist"),
    ),
}
_STANDARDS = {"3dpw": STANDARD_3DPW, "emdb": STANDARD_EMDB}


@dataclass
class TestSet:
    """P people.

    Attributes:
        path: the annotation file.
        items: crops, see `SyntheticImages` and `SMPLImages`.
        body: the body model that the annotated poses and shapes belong to.
        regressors: {name: (J, V)} that the protocols refer to.
        regressor2d: (J2, V) of the 2D keypoints.
        first_visible: {regressor: row of "keypoints2d" that holds its first joint}, where visibility is annotated.
        margin: side of the crop as a multiple of the box's longer side.
    """

    name: str
    path: Path
    items: SyntheticImages | SMPLImages
    body: BodyModel
    protocols: dict[str, Protocol]
    regressors: dict[str, Tensor]
    regressor2d: Tensor
    first_visible: dict[str, int]
    margin: float

    __test__ = False  # not a test, although pytest would take its name for one

    def __len__(self) -> int:
        return len(self.imgname)

    @property
    def imgname(self) -> np.ndarray:
        """(P,) path of each person's image."""
        return self.items.annotations.imgname

    def truth(self, batch: dict) -> Tensor:
        """True meshes (B, V, 3), m, in the camera's orientation."""
        return self.items.canonical_meshes(self.body, batch) @ batch["rotmat"].mT

    @cached_property
    def persons(self) -> np.ndarray:
        """(P,) number of each person within the image, from 0."""
        seen: Counter[str] = Counter()
        numbers = []
        for name in self.imgname:
            numbers.append(seen[name])
            seen[name] += 1
        return np.array(numbers)

    def choose_protocols(self, names: Sequence[str] | None) -> dict[str, Protocol]:
        """The protocols of these names, all if None; raises ValueError for one that this set does not have."""
        wanted = list(self.protocols if names is None else names)
        if unknown := [name for name in wanted if name not in self.protocols]:
            raise ValueError(
                f"protocol={unknown[0]} is not one of {self.name}: choose from {', '.join(self.protocols)}. "
                "(`standard` differs between 3DPW and EMDB: for your own file set testset.standard=3dpw or "
                "testset.standard=emdb.)"
            )
        return {name: self.protocols[name] for name in wanted}

    def joint_names(self, protocol: Protocol) -> tuple[str, ...]:
        return tuple(_JOINTS[protocol.regressor][row] for row in protocol.joints)

    def visible(self, batch: dict, protocol: Protocol) -> Tensor | None:
        """(B, J) bool: which joints of a protocol are visible; None where this is not annotated."""
        first = self.first_visible.get(protocol.regressor)
        if first is None:
            return None
        return batch["keypoints2d"][:, [first + row for row in protocol.joints], 2] > 0


def synthetic_test(
    body: BodyModel,
    crop: Crop,
    folder: str | Path,
    split: str,
    n_pictures: int | None = None,
    limit: int | None = None,
) -> TestSet:
    """A split of the images of make_synthetic.py.

    Args:
        n_pictures: size of the split if it has to be made first; None never makes it.
        limit: only the first so many people.
    """
    path = Path(folder) / split / "annotations.npz"
    if n_pictures is not None and body.name != "anny":
        raise ValueError(
            f"testset=synthetic is for the body anny, not {body.name}: choose testset=3dpw, emdb or FILE.npz."
        )
    if n_pictures is not None and not path.is_file():
        from mega.synthetic import build_split

        print(f"Making {n_pictures} images in {path.parent}")
        build_split(path.parent, n_pictures)
    items = SyntheticImages(folder, split, crop.size, crop.margin, limit=limit)
    if items.annotations.body != body.name:
        raise ValueError(f"{path} is for the body {items.annotations.body}, but the configured body is {body.name}.")
    people = TestSet(
        name=f"{Path(folder).name}_{split}",
        path=path,
        items=items,
        body=body,
        protocols={COCO17.name: COCO17},
        regressors={"body": body.keypoint_regressor},
        regressor2d=body.keypoint_regressor,
        first_visible={"body": 0},
        margin=crop.margin,
    )
    _check_images(people, path.parent, (path.parent,))
    return people


def people_of_file(
    body: BodyModel,
    crop: Crop,
    path: str | Path,
    root: str | Path | None = None,
    standard: str | None = None,
    limit: int | None = None,
) -> TestSet:
    """The people of any annotation file: one of make_synthetic.py, or one in the form of the released MEGA data.

    Args:
        root: folder that image names start from; None: the file's own or the current one.
        standard: data set whose standard protocol applies, "3dpw" or "emdb".
        limit: only the first so many people.

    Raises FileNotFoundError, or ValueError that says what is wrong with the file.
    """
    name, path = Path(path).stem, find_annotations(path)
    if path.is_file() and "body" in read_arrays(path, {"body"}):
        return synthetic_test(body, crop, path.parents[1], path.parent.name, None, limit)
    if not path.is_file() and standard is None:  # what kind of file it would be is not known
        raise FileNotFoundError(f"there is no annotation file {path}: datasets/README.md explains how to make one")
    if not isinstance(body, SMPLHBody):
        raise ValueError(
            f"{path} is annotated for SMPL bodies: give experiment=mega_hrnet, mega_resnet or mega_vit with it."
        )
    if standard not in (None, *_STANDARDS):
        raise ValueError(f"testset.standard={standard} is not known: choose 3dpw or emdb.")
    items = SMPLImages(path, crop.size, crop.patch, limit=limit, root=root)
    people = TestSet(
        name=name,
        path=path,
        items=items,
        body=body,
        protocols={"mega": MEGA, **({"standard": _STANDARDS[standard]} if standard else {}), "hips": HIPS},
        regressors={"h36m": body.h36m_regressor, "smpl": body.keypoint_regressor},
        regressor2d=keypoint_regressor(body),
        first_visible={"smpl": len(body.h36m_regressor)} if items.annotations.smpl_joints else {},
        margin=1.0,
    )
    _check_images(people, items.root, items.places)
    return people


def _check_images(people: TestSet, root: Path, places: Sequence[Path]) -> None:
    """Raise ValueError if the set is empty or an image is missing: a test on fewer people is a different test.

    Args:
        root: folder that image names start from; places: where it was looked for.
    """
    if len(people) == 0:
        raise ValueError(f"{people.path} annotates nobody: there is nothing to evaluate.")
    wanted = dict.fromkeys(people.imgname)
    missing = [name for name in wanted if not (root / str(name)).is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} images named in {people.path} are missing. The first was looked for "
            f"at {' and at '.join(str(place / str(missing[0])) for place in places)}. Add them, or make an annotation "
            "file without these people."
        )
