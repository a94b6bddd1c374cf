"""Several data sets as one.

The published data sets' people as items: crops of pictures with what is known about them.

The published data sets as batches, for training and testing image models on SMPL-H.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import roma
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mega.bodies.smplh import GENDERS, SMPLHBody
from mega.data.loading import Augmentation, evaluation_loader, training_loader
from mega.data.smpl_annotations import SMPLAnnotations, read_smpl_picture
from mega.external_files import find_annotations
from mega.geometry.smpl_crops import (
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
from mesh_vq_vae import MeshVQVAE


class Mixture(Dataset):
    """Items of several data sets, each with "part" besides: the number of the set that it is from.

    Args:
        parts: the data sets.
        part_of, row_of: (n,) which row of which part each item is.
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
        """An epoch as long as the longest part; each item's part is drawn with a probability proportional to its share.

        Within a part no row is taken twice before all have been taken once. The draw is a function of (seed, epoch);
        the parts' `epoch` is set.
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
    """n of n_rows rows; none twice before all have been taken once."""
    rounds = [rng.permutation(n_rows) for _ in range(-(-n // n_rows))]
    return np.concatenate([*rounds, np.empty(0, np.int64)])[:n]


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


class SMPLImages(Dataset):
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

    Source of the conventions: the published annotation files (`SMPLAnnotations`).
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
            image = read_smpl_picture(self.root, name)
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
    """(24, 3) of SMPL or (17, 3) of H36M -> (41, 3), see `SMPLImages`."""
    every = torch.zeros(N_KEYPOINTS, 3)
    rows = slice(_N_H36M, None) if smpl_joints else slice(_N_H36M)
    every[rows] = keypoints * torch.tensor([1, 1, N_KEYPOINTS / len(keypoints)])
    return every


log = logging.getLogger(__name__)


class SMPLImageData(L.LightningDataModule):
    """Batches of `SMPLImages` with meshes made on the device: "vertices", "tokens", "points", "keypoints3d".

    Args:
        body: SMPL-H; tokenizer: makes the tokens.
        train: {name: {"path", "root", "share"}}, see `Source`; an epoch is a draw of `Mixture.drawn`.
        val: {"path", "root"} of what a training is validated on. `path` may be a list: the first file that is there is
            taken. If none is, or with None, `val_share` of each training set is held out instead.
        val_share: of the rows of that set, spread evenly over the file.
        test: {"path", "root"}, or None.
        crop_size, patch, augmentation, flip_probability, limit, seed: see `SMPLImages`.
        margin: 1: the boxes of the annotations are cut as they are.
        batch_size: people a training step; `eval_batch_size` elsewhere.
        points: (S,) vertices that the training loss looks at.
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
        super().__init__()
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
        self.batch_size, self.eval_batch_size, self.points = batch_size, eval_batch_size, points
        self.workers, self.seed = workers, seed
        self._bad_pictures: dict[tuple[Path, int], str] = {}

    @property
    def keypoint_regressor(self) -> Tensor:
        """(41, V), of the keypoints that the items have."""
        return keypoint_regressor(self.body)

    @property
    def problems(self) -> list[str]:
        """What of the training files could not be used so far, by this process: a line a file and a line a picture."""
        opened = [part for parts in self._sets for part in parts] if "_sets" in self.__dict__ else []
        rows = dict.fromkeys(part.annotations.problem for part in opened if part.annotations.problem)
        return [*rows, *self._bad_pictures.values()]

    @cached_property
    def _sets(self) -> tuple[list[SMPLImages], list[SMPLImages]]:
        """What is trained on and what it is validated on. A bad picture must not stop a training in either."""
        train = [SMPLImages(source, **self.crop, **self.augmentation) for source in self.train_sources]
        source = _first_there(self.val)
        if source is None:
            val = [_hold_out(part, self.val_share) for part in train]
            rank_zero_info(f"validation: {sum(map(len, val))} people of the training sets, which are held out")
        else:
            val = [SMPLImages(source, training=True, **self.crop)]
            known = val[0].annotations
            val[0].annotations = known.select(spread_rows(len(known), self.val_share))
            rank_zero_info(f"validation: {len(val[0])} of {len(known)} people of {source.path}")
        return train, val

    def train_dataloader(self) -> DataLoader:
        shares = [source.share for source in self.train_sources]
        mixture = Mixture.drawn(self._sets[0], shares, self.trainer.current_epoch, self.seed)
        return training_loader(mixture, self.batch_size, self.trainer, self.seed, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation(Mixture.one_after_another(self._sets[1]))

    def test_dataloader(self) -> DataLoader | list:
        return [] if self.test is None else self._evaluation(SMPLImages(Source(**self.test), **self.crop))

    def _evaluation(self, data: Dataset) -> DataLoader:
        return evaluation_loader(data, self.eval_batch_size, self.trainer, num_workers=self.workers)

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Note which pictures could not be used, while the numbers are still on the host."""
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
        reason = f"{data.path}, row {data.annotations.row[index]}: its picture could not be used once, but now can."
        try:
            data.person(index)
        except BadPictureError as error:
            reason = str(error)
        self._bad_pictures[place] = reason
        log.warning("%s Another person is shown instead.", reason)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        device = batch["rotmat"].device
        genders = [GENDERS[i] for i in batch["gender"].tolist()]
        with torch.no_grad():
            vertices = self.body.to(device)(batch["pose"], batch["betas"], genders)
            batch["vertices"] = vertices
            batch["tokens"] = self.tokenizer.to(device).encode(vertices)
            batch["keypoints3d"] = self.keypoint_regressor @ vertices
            if self.points is not None:
                batch["points"] = vertices[:, self.points.to(device)]
        return batch


def spread_rows(n_rows: int, share: float) -> np.ndarray:
    """A share of n_rows rows, at least one, evenly spread."""
    n = max(1, round(share * n_rows))
    return ((np.arange(n) + 0.5) * n_rows / n).astype(np.int64)


def _first_there(source: Mapping | None) -> Source | None:
    """The source with the first of its paths that is a file, None if none is; a single path has to be there."""
    if source is None or isinstance(source["path"], str):
        return source and Source(**source)
    found = next((path for path in source["path"] if Path(path).is_file()), None)
    return found and Source(**{**source, "path": found})


def _hold_out(images: SMPLImages, share: float) -> SMPLImages:
    """Take a share of its rows out of a training set: a set without augmentation."""
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
