"""Annotated pictures for training and testing the image model, with the tokens of their bodies."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mega.bodies import BodyModel
from mega.data.annotations import Annotations
from mega.data.augmentation import Augmentation
from mega.data.image_dataset import ImageDataset
from mega.data.loading import evaluation_loader, training_loader
from mega.data.token_cache import cached_tokens
from mesh_vq_vae import MeshVQVAE

_CHUNK = 64  # bodies made at a time


class ImageData(L.LightningDataModule):
    """Batches of `ImageDataset` items with tokens; training batches also hold "points" (B, S, 3), canonical vertices.

    Args:
        body: that the annotations' parameters are for; tells tokens and, in validation and test, vertices.
        tokenizer: makes the tokens.
        folder: of the data set, with train/, val/ and test/.
        cache: folder for tokens.
        batch_size: people a training step; `eval_batch_size` elsewhere.
        crop_size: side of the crops, px; `margin`: of the box.
        patch: how published annotations would be cut (`PublishedImages`); these crops are exact either way.
        augmentation: of the training crops.
        mirrored: train on everyone once more as seen in a mirror.
        points: (S,) vertices that the training loss looks at.
        workers: processes that read pictures.
        limit: use the first so many people of each split only.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        body: BodyModel,
        tokenizer: MeshVQVAE,
        folder: str | Path,
        cache: str | Path,
        batch_size: int = 32,
        eval_batch_size: int = 50,
        crop_size: int = 160,
        margin: float = 1.1,
        patch: bool = False,
        augmentation: Augmentation | None = None,
        mirrored: bool = False,
        points: Tensor | None = None,
        workers: int = 1,
        limit: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.body, self.tokenizer, self.folder, self.cache = body, tokenizer, Path(folder), Path(cache)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.crop = {"crop_size": crop_size, "margin": margin, "limit": limit, "seed": seed}
        self.limit, self.mirrored = limit, mirrored
        self.augmentation, self.points, self.workers, self.seed = augmentation, points, workers, seed
        self._train: ImageDataset | None = None
        self._train_points: np.ndarray | None = None

    @property
    def keypoint_regressor(self) -> Tensor:
        """(23, V), of the keypoints that the items have."""
        return self.body.keypoint_regressor

    def prepare_data(self) -> None:
        """The tokens into the cache, by one process for all."""
        for split in ("train", "val") if self.trainer.training else ("test",):
            self._cached(split)

    def train_dataloader(self) -> DataLoader:
        if self._train is None:
            cached = self._cached("train")
            self._train = self._dataset(
                "train", cached["tokens"], augmentation=self.augmentation, mirrored=self.mirrored
            )
            self._train_points = cached.get("points")
        dataset = self._train.at_epoch(self.trainer.current_epoch)
        return training_loader(dataset, self.batch_size, self.trainer, self.seed, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        index = batch["index"].cpu()
        if self.trainer.training:
            if self._train_points is not None:
                batch["points"] = torch.from_numpy(self._train_points[index.numpy()]).to(batch["rotmat"])
            return batch
        annotations = self._evaluated.annotations
        device = batch["rotmat"].device
        pose = torch.from_numpy(annotations.pose[index.numpy()]).float().to(device)
        shape = torch.from_numpy(annotations.shape[index.numpy()]).float().to(device)
        with torch.no_grad():
            batch["vertices"] = self.body.to(device)(pose, shape)
        return batch

    def _evaluation(self, split: str) -> DataLoader:
        self._evaluated = self._dataset(split, self._cached(split)["tokens"])
        return evaluation_loader(self._evaluated, self.eval_batch_size, self.trainer, num_workers=self.workers)

    def _dataset(self, split: str, tokens: np.ndarray, **changes) -> ImageDataset:
        return ImageDataset(self.folder, split, tokens=tokens, **self.crop, **changes)

    def _cached(self, split: str) -> dict[str, np.ndarray]:
        annotations = Annotations.load(self.folder / split / "annotations.npz").select(slice(self.limit))
        if annotations.body != self.body.name:
            raise ValueError(
                f"{self.folder / split} is annotated for the body '{annotations.body}', "
                f"but the configured body is '{self.body.name}'."
            )
        pose, shape = torch.from_numpy(annotations.pose), torch.from_numpy(annotations.shape)
        if split == "train" and self.mirrored:
            pose, shape = torch.cat([pose, self.body.mirror_pose(pose)]), shape.repeat(2, 1)
        batches = [{"pose": p, "shape": s} for p, s in zip(pose.split(_CHUNK), shape.split(_CHUNK), strict=True)]
        # The sum tells two sets of one size apart.
        key = f"{self.folder.name}, {split}, {len(pose)} bodies, {pose.sum():.6g}"
        points = self.points if split == "train" else None
        path = self.cache / f"{self.folder.name}_{split}.npz"
        return cached_tokens(path, self.tokenizer, self.body, batches, key, points)
