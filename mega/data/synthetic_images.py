"""The annotations of a split of pictures: a typed table, one row a person, stored as arrays in one `.npz`.

Annotated pictures as training and test items.

Annotated pictures for training and testing the image model, with the tokens of their bodies.
"""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import roma
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mega.bodies import MIRRORED_KEYPOINTS, BodyModel
from mega.data.loading import Augmentation, evaluation_loader, training_loader
from mega.data.random_bodies import cached_tokens
from mega.geometry import crop_matrix, square_box, square_crop, warp_crop
from mesh_vq_vae import MeshVQVAE


@dataclass(frozen=True)
class SyntheticAnnotations:
    """P people in pictures. Pixels are those of the picture, metres and rotations those of its camera frame.

    Attributes:
        body: name of the body model that pose and shape are for.
        imgname: (P,) path of the picture relative to the split's folder.
        box: (P, 4) x0, y0, x1, y1 px, tight around the projected mesh; leaves the picture where the person does.
        image_size: (P, 2) width, height px.
        pose: (P, J, 3) axis-angle of the joints, root left out.
        shape: (P, S).
        root_orient: (P, 3) axis-angle from the canonical to the camera frame.
        trans: (P, 3) m, where the canonical centre stands in the camera frame.
        focal: (P,) px.
        principal_point: (P, 2) px.
        keypoints2d: (P, 23, 3) x, y px and visibility 0 or 1.
        keypoints3d: (P, 23, 3) m.
    """

    body: str
    imgname: np.ndarray
    box: np.ndarray
    image_size: np.ndarray
    pose: np.ndarray
    shape: np.ndarray
    root_orient: np.ndarray
    trans: np.ndarray
    focal: np.ndarray
    principal_point: np.ndarray
    keypoints2d: np.ndarray
    keypoints3d: np.ndarray

    def __len__(self) -> int:
        return len(self.imgname)

    def select(self, rows: np.ndarray | slice) -> SyntheticAnnotations:
        """The table of these rows."""
        return self._map(lambda column: column[rows])

    def _map(self, change: Callable[[np.ndarray], np.ndarray]) -> SyntheticAnnotations:
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "body"}
        return SyntheticAnnotations(self.body, **{name: change(column) for name, column in columns.items()})

    @classmethod
    def load(cls, path: str | Path) -> SyntheticAnnotations:
        """Read a table; fields that it does not know are left alone.

        Raises:
            FileNotFoundError: with what to do about it.
            ValueError: when a field is missing, of another shape or not finite; names the file and the field.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There are no annotations at {path}. Make them: python make_synthetic.py")
        try:
            with np.load(path, allow_pickle=False) as file:
                columns = {f.name: file[f.name] for f in fields(cls) if f.name in file.files}
        except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as annotations: {error}") from error
        missing = [f.name for f in fields(cls) if f.name not in columns]
        if missing:
            raise ValueError(f"{path} lacks the fields {missing}. Was it made by another version of make_synthetic.py?")
        body = str(columns.pop("body"))
        _check(path, columns)
        return cls(body, **{name: _as_stored(column) for name, column in columns.items()})


# The shape of a row; None is any length.
_ROW_SHAPES = {
    "imgname": (),
    "box": (4,),
    "image_size": (2,),
    "pose": (None, 3),
    "shape": (None,),
    "root_orient": (3,),
    "trans": (3,),
    "focal": (),
    "principal_point": (2,),
    "keypoints2d": (None, 3),
    "keypoints3d": (None, 3),
}


def _as_stored(column: np.ndarray) -> np.ndarray:
    """Numbers as float32, names as they are."""
    return column if column.dtype.kind == "U" else column.astype(np.float32)


def _check(path: Path, columns: dict[str, np.ndarray]) -> None:
    people = len(columns["imgname"])
    for name, column in columns.items():
        wanted = (people, *_ROW_SHAPES[name])
        fits = column.ndim == len(wanted) and all(
            want is None or have == want for have, want in zip(column.shape, wanted, strict=True)
        )
        if not fits:
            shape = ", ".join("any" if want is None else str(want) for want in wanted)
            raise ValueError(f"{path}: the field {name} has shape {column.shape}, expected ({shape}).")
        if name != "imgname" and not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column.reshape(people, -1)).all(axis=1))[0])
            raise ValueError(f"{path}: the field {name} is not finite in row {row}.")


class SyntheticImages(Dataset):
    """Crops of people with what is known about them. An item is a function of (seed, epoch, index) and of nothing else.

    Args:
        folder: of the data set; `folder/split` holds `annotations.npz` and the pictures.
        split: "train", "val" or "test".
        crop_size: side of the crops, pixels.
        margin: what the longer side of a person's box is multiplied by.
        augmentation: changes to the crops; none if left out.
        mirrored: add everyone once more as seen in a mirror: rows P to 2P - 1.
        tokens: (P, N) of the people's canonical meshes, (2P, N) if `mirrored`, where known; shared, not copied.
        seed: of the augmentation.
        limit: use the first so many people only.

    An item is a dict of
        image: (3, H, W) uint8, RGB.
        rotmat: (3, 3) from the canonical to the camera frame, turned along with the crop.
        keypoints2d: (23, 3) x, y in crop coordinates ([-1, 1] within the crop) and visibility 0 or 1.
        keypoints3d: (23, 3) m, canonical.
        square: (4,) px of the picture, the square that was cut out.
        index: row of the annotations; P more for those in the mirror.
        tokens: (N,) int64, if given.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        crop_size: int = 160,
        margin: float = 1.2,
        augmentation: Augmentation | None = None,
        mirrored: bool = False,
        tokens: np.ndarray | Tensor | None = None,
        seed: int = 0,
        limit: int | None = None,
    ):
        self.folder, self.split = Path(folder) / split, split
        self.annotations = SyntheticAnnotations.load(self.folder / "annotations.npz").select(slice(limit))
        self.crop_size, self.margin, self.augmentation, self.mirrored = crop_size, margin, augmentation, mirrored
        self.seed, self.epoch = seed, 0
        self.tokens = None if tokens is None else torch.as_tensor(tokens)
        if self.tokens is not None and len(self.tokens) != len(self):
            raise ValueError(
                f"{self.folder} has {len(self)} items, but there are tokens for {len(self.tokens)}: "
                "they were made for other annotations."
            )
        self._rotations = roma.rotvec_to_rotmat(torch.from_numpy(self.annotations.root_orient))
        centered = self.annotations.keypoints3d - self.annotations.trans[:, None]
        self._keypoints3d = torch.from_numpy(centered) @ self._rotations  # rows: R^T (x - t)

    def __len__(self) -> int:
        return len(self.annotations) * (1 + self.mirrored)

    def at_epoch(self, epoch: int) -> SyntheticImages:
        """The same people with the augmentation of another epoch; annotations are shared."""
        other = copy.copy(self)
        other.epoch = epoch
        return other

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} of {len(self)}.")
        row = index % len(self.annotations)
        image = read_rgb(self.folder / str(self.annotations.imgname[row]))
        box = self.annotations.box[row]
        if self.augmentation is None:
            square, degrees = square_box(box, self.margin), 0.0
            crop = square_crop(image, box, self.crop_size, self.margin).round().astype(np.uint8)
            crop = _channels_first(crop)
        else:
            rng = np.random.default_rng((self.seed, self.epoch, index))
            square = self.augmentation.draw_square(square_box(box, self.margin), rng)
            degrees = self.augmentation.draw_degrees(rng)
            crop = warp_crop(image, crop_matrix(square, self.crop_size, degrees), self.crop_size)
            crop = self.augmentation.draw_look(_channels_first(crop), rng)

        to_unit_crop = torch.from_numpy(crop_matrix(square, 2, degrees)).float()  # pixels -> [0, 2]
        keypoints = torch.from_numpy(self.annotations.keypoints2d[row])
        on_crop = keypoints[:, :2] @ to_unit_crop[:, :2].T + to_unit_crop[:, 2] - 1
        item = {
            "image": crop,
            "rotmat": _turn_in_picture(degrees) @ self._rotations[row],
            "keypoints2d": torch.cat([on_crop, keypoints[:, 2:]], dim=1),
            "keypoints3d": self._keypoints3d[row],
            "square": torch.from_numpy(square).float(),
            "index": index,
        }
        if index != row:
            item |= _mirror(item)
        if self.tokens is not None:
            item["tokens"] = self.tokens[index].long()
        return item


def read_rgb(path: Path) -> np.ndarray:
    """A picture of a data set as (H, W, 3) uint8, turned upright as its EXIF data says, as cv2.imread does."""
    if not path.is_file():
        raise FileNotFoundError(f"The picture {path} is annotated but not there.")
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if image is None:
        raise ValueError(f"{path} is not a picture that can be read; it may be cut short. Make or fetch it again.")
    return image


def _channels_first(crop: np.ndarray) -> Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(crop).permute(2, 0, 1)


def _mirror(item: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of an item changes when its crop is seen in a mirror; `square` still tells where the crop was cut."""
    across = torch.tensor([-1.0, 1.0, 1.0])  # x, in the crop, in the camera frame and in the body's own
    return {
        "image": item["image"].flip(-1),
        "rotmat": across[:, None] * item["rotmat"] * across,
        "keypoints2d": item["keypoints2d"][MIRRORED_KEYPOINTS] * across,
        "keypoints3d": item["keypoints3d"][MIRRORED_KEYPOINTS] * across,
    }


def _turn_in_picture(degrees: float) -> Tensor:
    """(3, 3) rotation about the optical axis, from x to y: what a turn of the crop does to the camera frame."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float32)


_CHUNK = 64  # bodies made at a time


class SyntheticImageData(L.LightningDataModule):
    """Batches of `SyntheticImages` items with tokens; training batches also hold "points" (B, S, 3), canonical vertices.

    Args:
        body: that the annotations' parameters are for; tells tokens and, in validation and test, vertices.
        tokenizer: makes the tokens.
        folder: of the data set, with train/, val/ and test/.
        cache: folder for tokens.
        batch_size: people a training step; `eval_batch_size` elsewhere.
        crop_size: side of the crops, px; `margin`: of the box.
        patch: how published annotations would be cut (`SMPLImages`); these crops are exact either way.
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
        self._train: SyntheticImages | None = None
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

    def _dataset(self, split: str, tokens: np.ndarray, **changes) -> SyntheticImages:
        return SyntheticImages(self.folder, split, tokens=tokens, **self.crop, **changes)

    def _cached(self, split: str) -> dict[str, np.ndarray]:
        annotations = SyntheticAnnotations.load(self.folder / split / "annotations.npz").select(slice(self.limit))
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
