"""The published data sets as batches, for training and testing image models on SMPL-H."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

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
        train: {name: {"path", "root", "share"}}, see `Source`; val, test: {"path", "root"}, or None.
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
        test: Mapping | None = None,
        crop_size: int = 224,
        margin: float = 1.0,
        patch: bool = False,
        augmentation: Augmentation | None = None,
        flip_probability: float = 0.5,
        batch_size: int = 32,
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
        self.sources = {"val": val, "test": test}
        self.train_sources = [Source(**source) for source in train.values()]
        self.crop = {"crop_size": crop_size, "patch": patch, "limit": limit, "seed": seed}
        self.augmentation = {"augmentation": augmentation, "flip_probability": flip_probability, "training": True}
        self.batch_size, self.eval_batch_size, self.points = batch_size, eval_batch_size, points
        self.workers, self.seed = workers, seed
        self._parts: list[PublishedImages] | None = None
        self._bad_pictures: dict[tuple[int, int], str] = {}

    @property
    def keypoint_regressor(self) -> Tensor:
        """(41, V), of the keypoints that the items have."""
        return keypoint_regressor(self.body)

    @property
    def problems(self) -> list[str]:
        """What of the training files could not be used so far, by this process: a line a file and a line a picture."""
        rows = [part.annotations.problem for part in self._parts or () if part.annotations.problem]
        return rows + list(self._bad_pictures.values())

    def train_dataloader(self) -> DataLoader:
        if self._parts is None:
            self._parts = [PublishedImages(source, **self.crop, **self.augmentation) for source in self.train_sources]
        shares = [source.share for source in self.train_sources]
        if None in shares and any(shares):
            raise ValueError("data.train: give every data set a share, or none.")
        epoch = self.trainer.current_epoch
        mixture = Mixture(self._parts, None if None in shares else shares, epoch, self.seed)
        return training_loader(mixture, self.batch_size, self.trainer, self.seed, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader | list:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader | list:
        return self._evaluation("test")

    def _evaluation(self, split: str) -> DataLoader | list:
        if self.sources[split] is None:
            return []
        data = PublishedImages(Source(**self.sources[split]), **self.crop)
        return evaluation_loader(data, self.eval_batch_size, self.trainer, num_workers=self.workers)

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Note which pictures could not be used, while the numbers are still on the host."""
        replaced, parts = batch.pop("replaced"), batch.pop("part", None)
        for i in torch.nonzero(replaced >= 0).flatten().tolist():
            self._note_bad_picture(int(parts[i]), int(replaced[i]))
        return batch

    def _note_bad_picture(self, part: int, index: int) -> None:
        if (part, index) in self._bad_pictures:
            return
        data = self._parts[part]
        reason = f"{data.path}, row {data.annotations.row[index]}: its picture could not be used once, but now can."
        try:
            data.person(index)
        except BadPictureError as error:
            reason = str(error)
        self._bad_pictures[part, index] = reason
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
