"""SMPL annotation files as training and test data: crops, mixtures of data sets, and the data module."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import roma
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from mega.bodies.smplh import GENDERS, SMPLHBody
from mega.data.loading import Augmentation, EpochData
from mega.data.smpl_annotations import SMPLAnnotations, read_smpl_picture
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

_N_H36M, _N_SMPL = 17, 24
# Rows of the H36M regressor in the order of the real images' 17 keypoints.
_H36M_ORDER = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10, 0, 7, 9)
N_KEYPOINTS = _N_H36M + _N_SMPL
_LARGEST_BOX = 10  # times the picture's longer side; a larger box is an error and would exhaust the memory


class Mixture(Dataset):
    """Items of several data sets, each with "part", the number of the set that it is from.

    Args:
        part_of, row_of: (n,) part and row of each item.
    """

    def __init__(self, parts: Sequence[Dataset], part_of: np.ndarray, row_of: np.ndarray):
        self.parts, self.part_of, self.row_of = parts, part_of, row_of

    def __len__(self) -> int:
        return len(self.row_of)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        part = int(self.part_of[index])
        return self.parts[part][int(self.row_of[index])] | {"part": part}

    @classmethod
    def drawn(cls, parts: Sequence[Dataset], shares: Sequence[float], epoch: int, seed: int) -> Mixture:
        """An epoch as long as the longest part; the probability of each part is proportional to its share.

        No row of a part is repeated before all have been used. The draw is a function of (seed, epoch). The `epoch` of
        the parts is set.
        """
        for part in parts:
            part.epoch = epoch
        rng = np.random.default_rng((seed, epoch))
        chances = np.asarray(shares, np.float64)
        part_of = rng.choice(len(parts), max(map(len, parts)), p=chances / chances.sum())
        row_of = np.empty_like(part_of)
        for number, part in enumerate(parts):
            own = part_of == number
            row_of[own] = _draw(len(part), own.sum(), rng)
        return cls(parts, part_of, row_of)

    @classmethod
    def one_after_another(cls, parts: Sequence[Dataset]) -> Mixture:
        """Every row of every part once."""
        lengths = [len(part) for part in parts]
        return cls(parts, np.repeat(np.arange(len(parts)), lengths), np.concatenate([np.arange(n) for n in lengths]))


def _draw(n_rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n random rows out of n_rows; none is repeated before all have been used."""
    rounds = [rng.permutation(n_rows) for _ in range(-(-n // n_rows))]
    return np.concatenate([*rounds, np.empty(0, np.int64)])[:n]


@dataclass(frozen=True)
class Source:
    """An annotation file.

    Attributes:
        root: folder that the picture names are relative to; None for the file's own folder or, if the pictures are
            only found there, the current folder.
        share: relative probability of this file in training (published: equal).
    """

    path: Path
    root: Path | None = None
    share: float = 1.0

    @property
    def places(self) -> tuple[Path, ...]:
        """Folders that the picture names may be relative to."""
        return (Path(self.path).parent, Path()) if self.root is None else (Path(self.root),)


class BadPictureError(ValueError):
    """A picture is missing or broken, or a person's crop cannot be cut out of it."""


class SMPLImages(Dataset):
    """Crops of one annotation file. An item is a function of (seed, epoch, index) and of nothing else.

    Args:
        crop_size: side of the crops, px.
        patch: crop as in the ViT's training (exactly), not as in that of HRNet and ResNet (in whole pixels).
        augmentation: how crops are augmented (`shift` is not used); None: not at all.
        flip_probability: of mirrored crops.
        training: skip bad rows, and replace a person whose picture cannot be used by the next one; otherwise both are
            errors.
        limit: use only this many rows, from the first.

    An item is a dict of
        image: (3, S, S) RGB in [0, 255]: uint8, or float32 without augmentation, since the published evaluation does
            not round its crops.
        pose: (21, 3) axis-angle, radians; betas: (10,); gender: index into GENDERS.
        rotmat: (3, 3) from the canonical to the camera frame, rotated with the crop.
        keypoints2d: (41, 3) the 17 joints of H36M, then SMPL's 24: x, y in crop coordinates and weight. A file
            annotates one of the two sets; the other has weight 0. The weight is the confidence (H36M) or 1 (SMPL),
            scaled so that the mean over all 41 is the mean over the annotated ones.
        index: row among those of the file that are used.
        replaced: -1, or the requested index if this is another person, because that picture cannot be used.

    Source: the published annotation files (`SMPLAnnotations`).
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
        self.annotations = SMPLAnnotations.load(self.path, skip_bad_rows=training).select(slice(limit))
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
            image = read_smpl_picture(self.root, name)
            side = PIXELS_PER_SCALE * scale
            if not 1 <= side <= _LARGEST_BOX * max(image.shape):
                raise ValueError(
                    f"A box of {side:.3g} px does not fit a picture of {image.shape[1]} x {image.shape[0]}."
                )
            if self.patch:
                # Rotating, then mirroring is mirroring, then rotating the other way.
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
            keypoints[:, 2] = 1  # the third column of published files is the depth
        else:
            keypoints = keypoints[list(PART24_TO_17)]
        if mirrored:
            keypoints = mirror_keypoints(keypoints, MIRRORED_SMPL if known.smpl_joints else MIRRORED_PART17)
            pose = mirror_pose(pose)
        return torch.from_numpy(keypoints).float(), torch.from_numpy(pose).float()


def keypoint_regressor(body: SMPLHBody) -> Tensor:
    """(41, V) regressor of the items' keypoints."""
    return torch.cat([body.h36m_regressor[list(_H36M_ORDER)], body.keypoint_regressor])


def _among_all(keypoints: Tensor, smpl_joints: bool) -> Tensor:
    """(24, 3) of SMPL or (17, 3) of H36M -> (41, 3), see `SMPLImages`."""
    every = torch.zeros(N_KEYPOINTS, 3)
    rows = slice(_N_H36M, None) if smpl_joints else slice(_N_H36M)
    every[rows] = keypoints * torch.tensor([1, 1, N_KEYPOINTS / len(keypoints)])
    return every


class SMPLImageData(EpochData):
    """Batches of `SMPLImages` with meshes made on the device: "vertices", "tokens", "points", "keypoints3d".

    Args:
        tokenizer: computes the tokens.
        train: {name: {"path", "root", "share"}}, see `Source`; epochs are drawn by `Mixture.drawn`.
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
        self.train_sources = [Source(**source) for source in train.values()]
        self.crop = {"crop_size": crop_size, "patch": patch, "limit": limit, "seed": seed}
        self.augmentation = {"augmentation": augmentation, "flip_probability": flip_probability, "training": True}
        self.points = points
        self._bad_pictures: dict[tuple[Path, int], str] = {}

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
        train = [SMPLImages(source, **self.crop, **self.augmentation) for source in self.train_sources]
        source = _first_there(self.val)
        if source is None:
            val = [_hold_out(part, self.val_share) for part in train]
            rank_zero_info(f"validation: {sum(map(len, val))} people of the training sets, held out")
        else:
            val = [SMPLImages(source, training=True, **self.crop)]
            known = val[0].annotations
            val[0].annotations = known.select(spread_rows(len(known), self.val_share))
            rank_zero_info(f"validation: {len(val[0])} of {len(known)} people of {source.path}")
        return train, val

    def train_dataset(self) -> Mixture:
        shares = [source.share for source in self.train_sources]
        return Mixture.drawn(self._sets[0], shares, self.trainer.current_epoch, self.seed)

    def fixed_dataset(self, split: str) -> Dataset | None:
        if split == "val":
            return Mixture.one_after_another(self._sets[1])
        return None if self.test is None else SMPLImages(Source(**self.test), **self.crop)

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Report pictures that could not be used, while the batch is still on the CPU."""
        replaced, parts = batch.pop("replaced"), batch.pop("part", None)
        for i in torch.nonzero(replaced >= 0).flatten().tolist():
            self._note_bad_picture(int(parts[i]), int(replaced[i]))
        return batch

    def _note_bad_picture(self, part: int, index: int) -> None:
        train, val = self._sets
        data = (train if self.trainer.training else val)[part]
        place = data.path, int(data.annotations.row[index])
        if place in self._bad_pictures:
            return
        reason = f"{data.path}, row {data.annotations.row[index]}: its picture could not be used at first, but now can."
        try:
            data.person(index)
        except BadPictureError as error:
            reason = str(error)
        self._bad_pictures[place] = reason
        log.warning("%s Another person is used instead.", reason)

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


def _first_there(source: Mapping | None) -> Source | None:
    """The source with the first of its paths that exists, None if none does; a single path must exist."""
    if source is None or isinstance(source["path"], str):
        return source and Source(**source)
    found = next((path for path in source["path"] if Path(path).is_file()), None)
    return found and Source(**{**source, "path": found})


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
