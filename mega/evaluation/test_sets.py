"""The sets of people that models are tested on: crops, true meshes, and the protocols that make sense for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mega.bodies import KEYPOINTS, BodyModel
from mega.bodies.smplh import GENDERS, SMPL_JOINTS, SMPLHBody
from mega.data import SMPLImages, SyntheticAnnotations, SyntheticImages
from mega.data.smpl_images import Source, keypoint_regressor
from mega.external_files import find_annotations
from mega.metrics import COCO17, HIPS, MEGA, STANDARD_3DPW, STANDARD_EMDB, Protocol

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
        name: of the set; path: of its annotations.
        items: the people's crops: "image" (3, S, S) RGB in [0, 255], "rotmat" (3, 3), "keypoints2d" (J2, 3) crop
            coordinates and visibility, "index", and what `truth` needs.
        imgname: (P,) the people's pictures.
        body: of the true meshes.
        protocols: by name.
        regressors: {name: (J, V)} that the protocols refer to.
        regressor2d: (J2, V) of the items' 2D keypoints.
        first_visible: of the rows of the items' keypoints that tell which joints of a regressor are seen; a regressor
            that is not named has no such rows.
        margin: side of the crops in longer sides of the boxes.
    """

    name: str
    path: Path
    items: Dataset
    imgname: np.ndarray
    body: BodyModel
    protocols: dict[str, Protocol]
    regressors: dict[str, Tensor]
    regressor2d: Tensor
    first_visible: dict[str, int]
    margin: float

    __test__ = False  # it is no test, whatever pytest thinks of its name

    def __len__(self) -> int:
        return len(self.imgname)

    def truth(self, batch: dict) -> Tensor:
        """True meshes (B, V, 3), m, in the camera's orientation, centred on their vertices."""
        return self.canonical(batch) @ batch["rotmat"].transpose(1, 2)

    def canonical(self, batch: dict) -> Tensor:
        raise NotImplementedError

    def persons(self) -> np.ndarray:
        """(P,) the number of each person among those of the same picture."""
        seen: dict[str, int] = {}
        numbers = []
        for name in self.imgname:
            numbers.append(seen.setdefault(name, 0))
            seen[name] += 1
        return np.array(numbers)

    def choose_protocols(self, names: Sequence[str] | None) -> dict[str, Protocol]:
        """The protocols of these names, all if None; raises ValueError for one that this set does not have."""
        wanted = list(self.protocols if names is None else names)
        if unknown := [name for name in wanted if name not in self.protocols]:
            raise ValueError(
                f"protocol={unknown[0]} is not one of {self.name}: choose from {', '.join(self.protocols)}. "
                "(`standard` is another protocol on 3DPW and on EMDB: for a file of your own say data.standard=3dpw "
                "or data.standard=emdb.)"
            )
        return {name: self.protocols[name] for name in wanted}

    def joint_names(self, protocol: Protocol) -> tuple[str, ...]:
        """Of the joints of a protocol."""
        return tuple(_JOINTS[protocol.regressor][row] for row in protocol.joints)

    def visible(self, batch: dict, protocol: Protocol) -> Tensor | None:
        """(B, J) bool: which joints of a protocol are seen; None where it is not known."""
        first = self.first_visible.get(protocol.regressor)
        if first is None:
            return None
        return batch["keypoints2d"][:, [first + row for row in protocol.joints], 2] > 0


class SyntheticTestSet(TestSet):
    """A split of `make_synthetic.py`'s pictures."""

    def __init__(self, body: BodyModel, crop: dict, folder: str | Path, split: str, name: str, limit: int | None):
        path = Path(folder) / split / "annotations.npz"
        annotations = SyntheticAnnotations.load(path)
        if annotations.body != body.name:
            raise ValueError(f"{path} is for the body {annotations.body}, but the configured body is {body.name}.")
        _check_pictures(path, (path.parent,), path.parent, annotations.imgname[:limit])
        items = SyntheticImages(folder, split, crop["size"], crop["margin"], limit=limit)
        known = items.annotations
        self._pose, self._shape = torch.from_numpy(known.pose), torch.from_numpy(known.shape)
        super().__init__(
            name=name,
            path=path,
            items=items,
            imgname=known.imgname,
            body=body,
            protocols={COCO17.name: COCO17},
            regressors={"body": body.keypoint_regressor},
            regressor2d=body.keypoint_regressor,
            first_visible={"body": 0},
            margin=crop["margin"],
        )

    def canonical(self, batch: dict) -> Tensor:
        rows, device = batch["index"].cpu(), batch["rotmat"].device
        return self.body(self._pose[rows].to(device), self._shape[rows].to(device))


class PublishedTestSet(TestSet):
    """People of an annotation file in the published form; `standard` says whose standard protocol holds."""

    def __init__(
        self,
        body: SMPLHBody,
        crop: dict,
        path: str | Path,
        root: str | Path | None,
        name: str,
        limit: int | None,
        standard: str | None = None,
    ):
        if not isinstance(body, SMPLHBody):
            raise ValueError(
                f"{path} is annotated for SMPL bodies: give experiment=mega_hrnet, mega_resnet or mega_vit with it."
            )
        source = Source(Path(path), None if root is None else Path(root))
        items = SMPLImages(source, crop["size"], crop.get("patch", False), limit=limit)
        _check_pictures(items.path, source.places, items.root, items.annotations.imgname)
        if standard not in (None, *_STANDARDS):
            raise ValueError(f"data.standard={standard} is not known: choose 3dpw or emdb.")
        chosen = {} if standard is None else {"standard": _STANDARDS[standard]}
        super().__init__(
            name=name,
            path=items.path,
            items=items,
            imgname=items.annotations.imgname,
            body=body,
            protocols={"mega": MEGA, **chosen, "hips": HIPS},
            regressors={"h36m": body.h36m_regressor, "smpl": body.keypoint_regressor},
            regressor2d=keypoint_regressor(body),
            first_visible={"smpl": len(body.h36m_regressor)} if items.annotations.smpl_joints else {},
            margin=1.0,
        )

    def canonical(self, batch: dict) -> Tensor:
        genders = [GENDERS[i] for i in batch["gender"].tolist()]
        return self.body(batch["pose"], batch["betas"], genders)


def synthetic_test(
    body: BodyModel, crop: dict, folder: str | Path, split: str, n_pictures: int, limit: int | None = None
) -> SyntheticTestSet:
    """A split of the synthetic pictures, made if it is not there yet."""
    if not (Path(folder) / split / "annotations.npz").is_file():
        from mega.synthetic import build_dataset

        print(f"{folder}/{split} is not there yet and is made: {n_pictures} pictures")
        build_dataset(folder, {split: n_pictures})
    return SyntheticTestSet(body, crop, folder, split, f"synthetic_{split}", limit)


def published_test(
    body: SMPLHBody,
    crop: dict,
    path: str | Path,
    root: str | Path | None = None,
    standard: str | None = None,
    limit: int | None = None,
) -> PublishedTestSet:
    """The people of an annotation file in the published form."""
    return PublishedTestSet(body, crop, path, root, Path(path).stem, limit, standard)


def people_of_file(body: BodyModel, crop: dict, path: str | Path, limit: int | None = None, **options) -> TestSet:
    """The people of any annotation file: one of make_synthetic.py, or one in the published form.

    Raises FileNotFoundError, or ValueError that says what is wrong with the file.
    """
    path = find_annotations(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no annotation file {path}: see datasets/README.md for how they are made")
    if _names_a_body(path):
        return SyntheticTestSet(body, crop, path.parents[1], path.parent.name, path.parent.name, limit)
    return published_test(body, crop, path, limit=limit, **options)


def _names_a_body(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as file:
            return "body" in file.files
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an annotation file (.npz): {error}") from error


def _check_pictures(path: Path, places: Sequence[Path], root: Path, names: np.ndarray) -> None:
    """Raise ValueError if there is nobody, or a picture is missing: a test on fewer people is another test.

    `root` is the one of the `places` that the pictures were found in.
    """
    if len(names) == 0:
        raise ValueError(f"{path} annotates nobody: there is nothing to evaluate.")
    wanted = dict.fromkeys(names)
    lacking = [name for name in wanted if not (root / str(name)).is_file()]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of the {len(wanted)} pictures that {path} names are missing. The first was looked for at "
            f"{' and at '.join(str(place / str(lacking[0])) for place in places)}. Fetch them, or make another "
            "annotation file without these people."
        )
