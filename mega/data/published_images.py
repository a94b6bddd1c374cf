"""The published data sets' people as items: crops of pictures with what is known about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import roma
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mega.bodies.smplh import GENDERS, SMPLHBody
from mega.data.augmentation import Augmentation
from mega.data.published import PublishedAnnotations, read_published_rgb
from mega.geometry.annotated import (
    MIRRORED_PART17,
    MIRRORED_SMPL,
    PART24_TO_17,
    PIXELS_A_SCALE,
    annotated_crop,
    keypoints_on_crop,
    mirror_keypoints,
    mirror_pose,
    patch_crop,
    patch_keypoints,
    turn_root,
)
from mega.user_files import find_annotations

_N_H36M, _N_SMPL = 17, 24
# Rows of the H36M regressor in the order of the real images' 17 keypoints.
_H36M_ORDER = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10, 0, 7, 9)
N_KEYPOINTS = _N_H36M + _N_SMPL
# A box of more than so many times the picture's longer side is a mistake, and takes the machine's memory.
_LARGEST_BOX = 10


@dataclass(frozen=True)
class Source:
    """An annotation file.

    Attributes:
        path: of the file.
        root: folder that its picture names start from; if left out, the file's own, or the project's (where the program
            runs) if the pictures are found there only.
        share: in training, the chance that an item is from this file, against the others' shares (published: equal).
    """

    path: Path
    root: Path | None = None
    share: float = 1.0

    @property
    def places(self) -> tuple[Path, ...]:
        """Folders that the picture names may start from."""
        return (Path(self.path).parent, Path()) if self.root is None else (Path(self.root),)


class BadPictureError(ValueError):
    """A picture that is missing or broken, or that a person's crop cannot be cut out of."""


class PublishedImages(Dataset):
    """Crops of one annotation file. An item is a function of (seed, epoch, index) and of nothing else.

    Args:
        source: the file and where its pictures are.
        crop_size: side of the crops, px.
        patch: cut them as the ViT's training does (exactly), not as that of HRNet and ResNet (in whole pixels).
        augmentation: changes to the crops (`shift` is not used); none if left out.
        flip_probability: how often a person is seen in a mirror.
        training: leave out bad rows, and give the next person of the file in place of one whose picture cannot be used;
            otherwise both are errors.
        seed: of the augmentation.
        limit: use the first so many rows only.

    An item is a dict of
        image: (3, S, S) RGB in [0, 255]: uint8, but float32 without augmentation, since published evaluation does not
            round what it cuts out.
        pose: (21, 3) axis-angle, radians; betas: (10,); gender: index into GENDERS.
        rotmat: (3, 3) from the canonical to the camera frame, turned along with the crop.
        keypoints2d: (41, 3) the 17 joints of H36M, then SMPL's 24: x, y in crop coordinates and weight, 0 for the set
            that the file does not annotate. The other's is the confidence (H36M's) or 1 (SMPL's), scaled so that a mean
            over all is its mean.
        index: of the person among those of the file that are used.
        replaced: -1, or the index that was asked for, where this is the next person whose picture can be used.

    Source of the conventions: the published annotation files (`PublishedAnnotations`).
    """

    def __init__(
        self,
        source: Source,
        crop_size: int = 224,
        patch: bool = False,
        augmentation: Augmentation | None = None,
        flip_probability: float = 0.0,
        training: bool = False,
        seed: int = 0,
        limit: int | None = None,
    ):
        self.path, self.training = find_annotations(source.path), training
        self.annotations = PublishedAnnotations.load(self.path, skip_bad_rows=training).select(slice(limit))
        self.root = self.annotations.picture_root(source.places)
        self.crop_size, self.patch = crop_size, patch
        self.augmentation, self.flip_probability = augmentation, flip_probability
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} of {len(self)}.")
        if not self.training:
            return self.person(index) | {"replaced": -1}
        for row in (*range(index, len(self)), *range(index)):
            try:
                return self.person(row) | {"replaced": -1 if row == index else index}
            except BadPictureError as error:
                last = error
        raise BadPictureError(f"{self.path}: none of its {len(self)} pictures can be used, the last: {last}")

    def person(self, index: int) -> dict[str, Tensor | int]:
        """The item of a row itself.

        Raises:
            BadPictureError: if its picture is missing or broken, or no crop can be cut out of it; names file and row.
        """
        known = self.annotations
        rng = np.random.default_rng((self.seed, self.epoch, index))
        degrees, scale, mirrored = 0.0, known.scale[index], rng.random() < self.flip_probability
        if self.augmentation is not None:
            degrees = self.augmentation.draw_degrees(rng)
            scale = scale * self.augmentation.draw_scale(rng)
        where = (known.center[index], scale, self.crop_size, degrees)
        image = torch.from_numpy(self._cut(index, *where, mirrored)).permute(2, 0, 1)
        if self.augmentation is None:
            image = image.float()
        else:
            image = self.augmentation.draw_look(image.round().to(torch.uint8), rng)
        keypoints, pose = self._keypoints_and_pose(index, where, mirrored)
        return {
            "image": image,
            "pose": pose[1:],
            "betas": torch.from_numpy(known.betas[index]).float(),
            "gender": GENDERS.index(known.gender[index]),
            "rotmat": roma.rotvec_to_rotmat(pose[0]),
            "keypoints2d": _among_all(keypoints, known.smpl_joints),
            "index": index,
        }

    def _cut(
        self, index: int, center: np.ndarray, scale: float, size: int, degrees: float, mirrored: bool
    ) -> np.ndarray:
        name = self.annotations.imgname[index]
        try:
            image = read_published_rgb(self.root, name)
            side = PIXELS_A_SCALE * scale
            if not 1 <= side <= _LARGEST_BOX * max(image.shape):
                raise ValueError(
                    f"A box of {side:.3g} px does not fit a picture of {image.shape[1]} x {image.shape[0]}."
                )
            if self.patch:
                # Turned and then mirrored, which is mirrored and then turned the other way.
                return patch_crop(image, center, scale, size, -degrees if mirrored else degrees, mirrored)
            crop = annotated_crop(image, center, scale, size, degrees)
            return crop[:, ::-1].copy() if mirrored else crop
        except (OSError, ValueError, cv2.error) as error:
            row = self.annotations.row[index]
            raise BadPictureError(f"{self.path}, row {row}, {name}: {error}") from error

    def _keypoints_and_pose(self, index: int, where: tuple, mirrored: bool) -> tuple[Tensor, Tensor]:
        known, move = self.annotations, patch_keypoints if self.patch else keypoints_on_crop
        keypoints, pose = move(known.keypoints2d[index], *where), known.pose[index].copy()
        pose[0] = turn_root(pose[0], where[-1])
        if known.smpl_joints:
            keypoints[:, 2] = 1  # all count: the third column of published files is the depth
        else:
            keypoints = keypoints[list(PART24_TO_17)]
        if mirrored:
            keypoints = mirror_keypoints(keypoints, MIRRORED_SMPL if known.smpl_joints else MIRRORED_PART17)
            pose = mirror_pose(pose)
        return torch.from_numpy(keypoints).float(), torch.from_numpy(pose).float()


def keypoint_regressor(body: SMPLHBody) -> Tensor:
    """(41, V), of the keypoints that the items have."""
    return torch.cat([body.h36m_regressor[list(_H36M_ORDER)], body.keypoint_regressor])


def _among_all(keypoints: Tensor, smpl_joints: bool) -> Tensor:
    """(24, 3) of SMPL or (17, 3) of H36M -> (41, 3), see `PublishedImages`."""
    every = torch.zeros(N_KEYPOINTS, 3)
    rows = slice(_N_H36M, None) if smpl_joints else slice(_N_H36M)
    every[rows] = keypoints * torch.tensor([1, 1, N_KEYPOINTS / len(keypoints)])
    return every
