"""The published data sets as batches, for training and testing image models on SMPL-H."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mega.bodies.smplh import GENDERS, SMPLHBody
from mega.data.augmentation import Augmentation
from mega.data.loading import evaluation_loader, training_loader
from mega.data.mixture import Mixture
from mega.data.published_images import BadPictureError, PublishedImages, Source, keypoint_regressor
from mesh_vq_vae import MeshVQVAE

log = logging.getLogger(__name__)


class PublishedImageData(L.LightningDataModule):
    """Batches of `PublishedImages` with meshes made on the device: "vertices", "tokens", "points", "keypoints3d".

    Args:
        body: SMPL-H; tokenizer: makes the tokens.
        train: {name: {"path", "root", "share"}}, see `Source`; an epoch is a draw of `Mixture.drawn`.
        val: {"path", "root"} of what a training is validated on. `path` may be a list: the first file that is there is
            taken. If none is, or with None, `val_share` of each training set is held out instead.
        val_share: of the rows of that set, spread evenly over the file.
        test: {"path", "root"}, or None.
        crop_size, patch, augmentation, flip_probability, limit, seed: see `PublishedImages`.
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
    def _sets(self) -> tuple[list[PublishedImages], list[PublishedImages]]:
        """What is trained on and what it is validated on. A bad picture must not stop a training in either."""
        train = [PublishedImages(source, **self.crop, **self.augmentation) for source in self.train_sources]
        source = _first_there(self.val)
        if source is None:
            val = [_hold_out(part, self.val_share) for part in train]
            rank_zero_info(f"validation: {sum(map(len, val))} people of the training sets, which are held out")
        else:
            val = [PublishedImages(source, training=True, **self.crop)]
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
        return [] if self.test is None else self._evaluation(PublishedImages(Source(**self.test), **self.crop))

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


def _hold_out(images: PublishedImages, share: float) -> PublishedImages:
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
