"""SMPL annotation files as training and test data: crops, mixtures of data sets, and the data module."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import roma
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from mega.bodies.smplh import GENDERS, SMPLHBody
from mega.data.loading import Augmentation, EpochData
from mega.data.smpl_annotations import SMPLAnnotations, first_existing, read_smpl_picture
from mega.external_files import find_annotations
from mega.smpl_crops import (
    MIRRORED_PART17,
    MIRRORED_SMPL,
    PART24_TO_17,
    PIXELS_PER_SCALE,
    annotated_crop,
    keypoints_on_crop,
    mirror_keypoints,
    mirror_pose,
    patch_crop,
    patch_keypoints,
    turn_root,
)
from mesh_vq_vae import MeshVQVAE

log = logging.getLogger(__name__)

_N_H36M = 17  # keypoints of real images; then come the 24 of SMPL
# Rows of the H36M regressor in the order of the real images' 17 keypoints.
_H36M_ORDER = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10, 0, 7, 9)
N_KEYPOINTS = _N_H36M + 24
_LARGEST_BOX = 10  # times the picture's longer side; a larger box is an error and would exhaust the memory


def draw_mixture(parts: Sequence[Dataset], shares: Sequence[float], epoch: int, seed: int) -> Subset:
    """An epoch as long as the longest part; the probability of each part is proportional to its share.

    No row of a part is repeated before all have been used. The draw is a function of (seed, epoch). The `epoch` of the
    parts is set.
    """
    rng = np.random.default_rng((seed, epoch))
    chances = np.asarray(shares, np.float64)
    part_of = rng.choice(len(parts), max(map(len, parts)), p=chances / chances.sum())
    rows, start = np.empty_like(part_of), 0  # rows of all parts, one after another
    for number, part in enumerate(parts):
        part.epoch = epoch
        own, n = part_of == number, len(part)
        rounds = [rng.permutation(n) for _ in range(-(-own.sum() // n))]
        rows[own] = start + np.concatenate([*rounds, np.empty(0, np.int64)])[: own.sum()]
        start += n
    return Subset(ConcatDataset(parts), rows.tolist())


class BadPictureError(ValueError):
    """A picture is missing or broken, or a person's crop cannot be cut out of it."""


class SMPLImages(Dataset):
    """Crops of one annotation file. An item is a function of (seed, epoch, index) and of nothing else.

    Args:
        path: the annotation file, see `find_annotations`.
        crop_size: side of the crops, px.
        patch: crop as in the ViT's training (exactly), not as in that of HRNet and ResNet (in whole pixels).
        augmentation: how crops are augmented (`shift` is not used); None: not at all.
        flip_probability: how often a crop is mirrored.
        training: skip bad rows, and replace a person whose picture cannot be used by the next one; otherwise both are
            errors.
        limit: use only this many rows, from the first.
        root: folder that the picture names are relative to; None for the file's own folder or, if the pictures are
            only found there, the current folder.

    An item is a dict of
        image: (3, S, S) RGB in [0, 255]: uint8, or float32 without augmentation, since the published evaluation does
            not round its crops.
        pose: (21, 3) axis-angle, radians; betas: (10,); gender: index into GENDERS.
        rotmat: (3, 3) from the canonical to the camera frame, rotated with the crop.
        keypoints2d: (41, 3) the 17 joints of H36M, then SMPL's 24: x, y in crop coordinates and weight. A file
            annotates one of the two sets; the other has weight 0. The weight is the confidence (H36M) or 1 (SMPL),
            scaled so that the mean over all 41 is the mean over the annotated ones.
        index: row among those of the file that are used.
        problem: in training, file and row of the requested person if this is another one, and why; else two empty
            strings.

    Source: the published annotation files (`SMPLAnnotations`).
    """

    def __init__(
        self,
        path: str | Path,
        crop_size: int = 224,
        patch: bool = False,
        augmentation: Augmentation | None = None,
        flip_probability: float = 0.0,
        training: bool = False,
        seed: int = 0,
        limit: int | None = None,
        root: str | Path | None = None,
    ):
        self.path, self.training = find_annotations(path), training
        self.annotations = SMPLAnnotations.load(self.path, skip_bad_rows=training).select(slice(limit))
        self.places = (Path(path).parent, Path()) if root is None else (Path(root),)
        self.root = self.annotations.picture_root(self.places)
        self.crop_size, self.patch = crop_size, patch
        self.augmentation, self.flip_probability = augmentation, flip_probability
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> dict[str, Tensor | int | tuple[str, str]]:
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} of {len(self)}.")
        if not self.training:
            return self.person(index)
        problem = ("", "")
        for row in (*range(index, len(self)), *range(index)):
            try:
                return self.person(row) | {"problem": problem}
            except BadPictureError as error:
                last = str(error)
                if row == index:
                    problem = (f"{self.path}, row {self.annotations.row[row]}", last)
        raise BadPictureError(f"{self.path}: none of its {len(self)} pictures can be used, the last: {last}")

    def canonical_meshes(self, body: SMPLHBody, batch: dict) -> Tensor:
        """True canonical meshes (B, V, 3) of a batch of items, on its device."""
        with torch.no_grad():
            return body(batch["pose"], batch["betas"], batch["gender"])

    def person(self, index: int) -> dict[str, Tensor | int]:
        """The item of this row, never of another one.

        Raises BadPictureError, with file and row, if its picture is missing or broken or no crop can be cut out of it.
        """
        known = self.annotations
        rng = np.random.default_rng((self.seed, self.epoch, index))
        degrees, scale, mirrored = 0.0, known.scale[index], rng.random() < self.flip_probability
        if self.augmentation is not None:
            degrees = self.augmentation.draw_degrees(rng)
            scale = scale * self.augmentation.draw_scale(rng)
        image = torch.from_numpy(self._cut(index, scale, degrees, mirrored)).permute(2, 0, 1)
        if self.augmentation is None:
            image = image.float()
        else:
            image = self.augmentation.draw_look(image.round().to(torch.uint8), rng)
        pose = known.pose[index].copy()
        pose[0] = turn_root(pose[0], degrees)
        pose = torch.from_numpy(mirror_pose(pose) if mirrored else pose).float()
        return {
            "image": image,
            "pose": pose[1:],
            "betas": torch.from_numpy(known.betas[index]).float(),
            "gender": GENDERS.index(known.gender[index]),
            "rotmat": roma.rotvec_to_rotmat(pose[0]),
            "keypoints2d": torch.from_numpy(self._keypoints(index, scale, degrees, mirrored)),
            "index": index,
        }

    def _cut(self, index: int, scale: float, degrees: float, mirrored: bool) -> np.ndarray:
        """The crop (S, S, 3), uint8 or float64."""
        name, center, size = self.annotations.imgname[index], self.annotations.center[index], self.crop_size
        try:
            image = read_smpl_picture(self.root, name)
            side = PIXELS_PER_SCALE * scale
            height, width = image.shape[:2]
            if not 1 <= side <= _LARGEST_BOX * max(height, width):
                raise ValueError(f"A box of {side:.3g} px does not fit a picture of {width} x {height}.")
            if self.patch:
                # Rotating, then mirroring is mirroring, then rotating the other way.
                return patch_crop(image, center, scale, size, -degrees if mirrored else degrees, mirrored)
            crop = annotated_crop(image, center, scale, size, degrees)
            return crop[:, ::-1].copy() if mirrored else crop
        except (OSError, ValueError, cv2.error) as error:
            row = self.annotations.row[index]
            raise BadPictureError(f"{self.path}, row {row}, {name}: {error}") from error

    def _keypoints(self, index: int, scale: float, degrees: float, mirrored: bool) -> np.ndarray:
        known, move = self.annotations, patch_keypoints if self.patch else keypoints_on_crop
        keypoints = move(known.keypoints2d[index], known.center[index], scale, self.crop_size, degrees)
        if known.smpl_joints:
            rows, mirrored_joints = slice(_N_H36M, None), MIRRORED_SMPL
            keypoints[:, 2] = 1  # the third column of published files is the depth
        else:
            rows, mirrored_joints = slice(_N_H36M), MIRRORED_PART17
            keypoints = keypoints[list(PART24_TO_17)]
        if mirrored:
            keypoints = mirror_keypoints(keypoints, mirrored_joints)
        every = np.zeros((N_KEYPOINTS, 3), np.float32)
        every[rows] = keypoints * np.float32([1, 1, N_KEYPOINTS / len(keypoints)])
        return every


def keypoint_regressor(body: SMPLHBody) -> Tensor:
    """(41, V) regressor of the items' keypoints."""
    return torch.cat([body.h36m_regressor[list(_H36M_ORDER)], body.keypoint_regressor])


class SMPLImageData(EpochData):
    """Batches of `SMPLImages` with meshes made on the device: "vertices", "tokens", "points", "keypoints3d".

    Args:
        tokenizer: computes the tokens.
        train: {name: {"path", "root", "share"}}: arguments of `SMPLImages`, and the relative probability of this file
            (published: equal); epochs are drawn by `draw_mixture`.
        val: {"path", "root"} of the validation set. `path` may be a list, of which the first file that exists is used.
            If none exists, or with None, `val_share` of each training set is held out instead.
        val_share: fraction of its rows to validate on, spread evenly over the file.
        test: {"path", "root"}, or None.
        crop_size, patch, augmentation, flip_probability, limit, seed: see `SMPLImages`.
        margin: must be 1, since the boxes of the annotations are not enlarged.
        batch_size, eval_batch_size: people per step and process, in training and elsewhere.
        points: (S,) indices of the vertices used by the training loss.
        workers: processes that read pictures.
    """

    def __init__(
        self,
        body: SMPLHBody,
        tokenizer: MeshVQVAE,
        train: Mapping[str, Mapping],
        val: Mapping | None = None,
        val_share: float = 0.01,
        test: Mapping | None = None,
        crop_size: int = 224,
        margin: float = 1.0,
        patch: bool = False,
        augmentation: Augmentation | None = None,
        flip_probability: float = 0.0,
        batch_size: int = 16,
        eval_batch_size: int = 50,
        points: Tensor | None = None,
        workers: int = 1,
        limit: int | None = None,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed, eval_batch_size, num_workers=workers)
        if margin != 1:
            raise ValueError(
                f"crop.margin={margin}, but the boxes of published annotations are cut as they are: give 1."
            )
        self.body, self.tokenizer = body, tokenizer
        if not 0 < val_share <= 1:
            raise ValueError(f"data.val_share={val_share}: give a share above 0, up to 1.")
        self.val, self.val_share, self.test = val, val_share, test
        self.shares = [source.get("share", 1.0) for source in train.values()]
        self.train = [{name: value for name, value in source.items() if name != "share"} for source in train.values()]
        self.crop = {"crop_size": crop_size, "patch": patch, "limit": limit, "seed": seed}
        self.augmentation = {"augmentation": augmentation, "flip_probability": flip_probability, "training": True}
        self.points = points
        self._bad_pictures: dict[str, str] = {}  # file and row -> reason

    @property
    def keypoint_regressor(self) -> Tensor:
        """(41, V) regressor of the items' keypoints."""
        return keypoint_regressor(self.body)

    @property
    def problems(self) -> list[str]:
        """What this process could not use so far: one line per file with bad rows, one per picture."""
        opened = [part for parts in self._sets for part in parts] if "_sets" in self.__dict__ else []
        rows = dict.fromkeys(part.annotations.problem for part in opened if part.annotations.problem)
        return [*rows, *self._bad_pictures.values()]

    @cached_property
    def _sets(self) -> tuple[list[SMPLImages], list[SMPLImages]]:
        """Training and validation sets. A bad picture must not stop the training in either."""
        train = [SMPLImages(**source, **self.crop, **self.augmentation) for source in self.train]
        source = self.val
        if source is not None and not isinstance(source["path"], str):
            path = first_existing(source["path"])
            source = path and {**source, "path": path}
        if source is None:
            val = [_hold_out(part, self.val_share) for part in train]
            rank_zero_info(f"validation: {sum(map(len, val))} people of the training sets, held out")
        else:
            val = [SMPLImages(**source, training=True, **self.crop)]
            known = val[0].annotations
            val[0].annotations = known.select(spread_rows(len(known), self.val_share))
            rank_zero_info(f"validation: {len(val[0])} of {len(known)} people of {source['path']}")
        return train, val

    def train_dataset(self) -> Subset:
        return draw_mixture(self._sets[0], self.shares, self.trainer.current_epoch, self.seed)

    def fixed_dataset(self, split: str) -> Dataset | None:
        if split == "val":
            return ConcatDataset(self._sets[1])
        return None if self.test is None else SMPLImages(**self.test, **self.crop)

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        for row, reason in zip(*batch.pop("problem", ((), ())), strict=True):
            if row and row not in self._bad_pictures:
                self._bad_pictures[row] = reason
                log.warning("%s Another person is used instead.", reason)
        return batch

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        device = batch["rotmat"].device
        with torch.no_grad():
            vertices = self.body.to(device)(batch["pose"], batch["betas"], batch["gender"])
            batch["vertices"] = vertices
            batch["tokens"] = self.tokenizer.to(device).encode(vertices)
            batch["keypoints3d"] = self.keypoint_regressor @ vertices
            if self.points is not None:
                batch["points"] = vertices[:, self.points.to(device)]
        return batch


def spread_rows(n_rows: int, share: float) -> np.ndarray:
    """A fraction of n_rows rows, at least one, evenly spread."""
    n = max(1, round(share * n_rows))
    return ((np.arange(n) + 0.5) * n_rows / n).astype(np.int64)


def _hold_out(images: SMPLImages, share: float) -> SMPLImages:
    """Remove a fraction of the rows from a training set and return them as a set without augmentation."""
    known, rows = images.annotations, spread_rows(len(images), share)
    if len(rows) == len(known):
        raise ValueError(
            f"{images.path}: with data.val_share={share} none of its {len(known)} rows is left to train on."
        )
    held_out = copy.copy(images)
    held_out.augmentation, held_out.flip_probability = None, 0.0
    held_out.annotations = known.select(rows)
    images.annotations = known.select(np.setdiff1d(np.arange(len(known)), rows))
    return held_out
