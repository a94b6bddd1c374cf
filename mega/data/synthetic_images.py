"""The pictures of `make_synthetic.py` as training and test data: their annotations, crops, and the data module."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, get_type_hints

import cv2
import numpy as np
import roma
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mega.bodies import MIRRORED_KEYPOINTS, BodyModel
from mega.data.loading import Augmentation, EpochData
from mega.data.random_bodies import cached_tokens
from mega.geometry import crop_matrix, square_box, square_crop, warp_crop
from mega_common.files import as_names, as_numbers, as_text, read_arrays
from mesh_vq_vae import MeshVQVAE

_CHUNK = 64  # bodies turned into tokens at a time


@dataclass(frozen=True)
class SyntheticAnnotations:
    """P people in pictures. Each field but `body` has one row per person, of the annotated shape (None is any length).

    Pixels are those of the picture, metres and rotations (axis-angle) those of its camera frame. Numbers are float32.
    """

    body: str  # name of the body model of pose and shape
    imgname: Annotated[np.ndarray, ()]  # path of the picture, relative to the split's folder
    box: Annotated[np.ndarray, (4,)]  # x0, y0, x1, y1 px, tight around the projected mesh, which may leave the picture
    image_size: Annotated[np.ndarray, (2,)]  # width, height px
    pose: Annotated[np.ndarray, (None, 3)]  # (J, 3) of the joints without the root
    shape: Annotated[np.ndarray, (None,)]  # (S,)
    root_orient: Annotated[np.ndarray, (3,)]  # from the canonical to the camera frame
    trans: Annotated[np.ndarray, (3,)]  # m, position of the canonical centre in the camera frame
    focal: Annotated[np.ndarray, ()]  # px
    principal_point: Annotated[np.ndarray, (2,)]  # px
    keypoints2d: Annotated[np.ndarray, (None, 3)]  # (23, 3) x, y px and visibility 0 or 1
    keypoints3d: Annotated[np.ndarray, (None, 3)]  # (23, 3) m

    def __len__(self) -> int:
        return len(self.imgname)

    @classmethod
    def load(cls, path: str | Path, limit: int | None = None) -> SyntheticAnnotations:
        """Read a table, or the first `limit` rows of it; unknown fields are ignored.

        Raises FileNotFoundError with what to do, or ValueError, with file and field, if a field is missing, has another
        shape or is not finite.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There are no annotations at {path}. Make them: python tools/make_synthetic.py")
        types = get_type_hints(cls, include_extras=True)
        columns = read_arrays(path, types)
        if missing := [name for name in types if name not in columns]:
            raise ValueError(f"{path} lacks the fields {missing}. Was it made by another version of make_synthetic.py?")
        body, imgname = str(as_text(columns.pop("body"))), columns.pop("imgname")
        if imgname.ndim != 1:
            raise ValueError(f"{path}: the field imgname has shape {imgname.shape}, expected one name per person.")
        for name, column in columns.items():
            (row_shape,) = types[name].__metadata__
            column = as_numbers(column, path, name, (len(imgname), *row_shape))
            if len(bad := np.argwhere(~np.isfinite(column))):
                raise ValueError(f"{path}: the field {name} is not finite in row {bad[0, 0]}.")
            columns[name] = column[:limit].astype(np.float32)
        return cls(body, as_names(imgname[:limit]), **columns)


class SyntheticImages(Dataset):
    """Crops of people with their annotations. An item is a function of (seed, epoch, index) and of nothing else.

    Args:
        folder: folder of the data set; `folder/split` holds `annotations.npz` and the pictures.
        split: "train", "val" or "test".
        crop_size: side of the crops, px.
        margin: side of the crop in longer sides of the person's box.
        augmentation: how crops are augmented; None: not at all.
        mirrored: add everyone a second time, mirrored: rows P to 2P - 1.
        limit: use only this many people, from the first.

    An item is a dict of
        image: (3, H, W) uint8, RGB.
        rotmat: (3, 3) from the canonical to the camera frame, rotated with the crop.
        keypoints2d: (23, 3) x, y in crop coordinates ([-1, 1] within the crop) and visibility 0 or 1.
        keypoints3d: (23, 3) m, canonical.
        square: (4,) px of the picture, the square that was cropped.
        index: row of the annotations, plus P if mirrored.
        tokens: (N,) int64, after `set_tokens`.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        crop_size: int = 160,
        margin: float = 1.2,
        augmentation: Augmentation | None = None,
        mirrored: bool = False,
        seed: int = 0,
        limit: int | None = None,
    ):
        self.folder = Path(folder) / split
        self.annotations = SyntheticAnnotations.load(self.folder / "annotations.npz", limit)
        self.crop_size, self.margin, self.augmentation, self.mirrored = crop_size, margin, augmentation, mirrored
        self.seed, self.epoch = seed, 0
        self.tokens: Tensor | None = None
        self._rotations = roma.rotvec_to_rotmat(torch.from_numpy(self.annotations.root_orient))
        centered = self.annotations.keypoints3d - self.annotations.trans[:, None]
        self._keypoints3d = torch.from_numpy(centered) @ self._rotations  # rows: R^T (x - t)

    def __len__(self) -> int:
        return len(self.annotations) * (1 + self.mirrored)

    def set_tokens(self, tokens: np.ndarray) -> None:
        """Add the tokens (P, N) of the canonical meshes, (2P, N) if `mirrored`, to the items; shared, not copied."""
        if len(tokens) != len(self):
            raise ValueError(
                f"{self.folder} has {len(self)} items, but there are tokens for {len(tokens)}: "
                "they were made for other annotations."
            )
        self.tokens = torch.from_numpy(tokens)

    def at_epoch(self, epoch: int) -> SyntheticImages:
        """The same people with the augmentation of another epoch; annotations are shared."""
        other = copy.copy(self)
        other.epoch = epoch
        return other

    def canonical_meshes(self, body: BodyModel, batch: dict) -> Tensor:
        """True canonical meshes (B, V, 3) of a batch of items, on its device; not for mirrored items."""
        rows, device = batch["index"].cpu().numpy(), batch["rotmat"].device
        pose, shape = (torch.from_numpy(c[rows]).to(device) for c in (self.annotations.pose, self.annotations.shape))
        with torch.no_grad():
            return body(pose, shape)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} of {len(self)}.")
        row = index % len(self.annotations)
        image = read_rgb(self.folder / str(self.annotations.imgname[row]))
        box = self.annotations.box[row]
        square, degrees = square_box(box, self.margin), 0.0
        if self.augmentation is None:
            crop = square_crop(image, box, self.crop_size, self.margin).round().astype(np.uint8)
            crop = torch.from_numpy(crop).permute(2, 0, 1)
        else:
            rng = np.random.default_rng((self.seed, self.epoch, index))
            square = self.augmentation.draw_square(square, rng)
            degrees = self.augmentation.draw_degrees(rng)
            crop = warp_crop(image, crop_matrix(square, self.crop_size, degrees), self.crop_size)
            crop = self.augmentation.draw_look(torch.from_numpy(crop).permute(2, 0, 1), rng)

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
    """A picture of a data set as (H, W, 3) uint8, turned upright as its EXIF data says."""
    if not path.is_file():
        raise FileNotFoundError(f"The picture {path} is annotated but missing.")
    content = np.fromfile(path, np.uint8)  # OpenCV itself opens no file whose name Windows' code page lacks
    image = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if len(content) else None
    if image is None:
        raise ValueError(f"{path} cannot be read as a picture; it may be incomplete. Make or download it again.")
    return image


def _mirror(item: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of an item that change when its crop is mirrored; `square` stays that of the picture."""
    across = torch.tensor([-1.0, 1.0, 1.0])  # x, in the crop, in the camera frame and in the body's own
    return {
        "image": item["image"].flip(-1),
        "rotmat": across[:, None] * item["rotmat"] * across,
        "keypoints2d": item["keypoints2d"][MIRRORED_KEYPOINTS] * across,
        "keypoints3d": item["keypoints3d"][MIRRORED_KEYPOINTS] * across,
    }


def _turn_in_picture(degrees: float) -> Tensor:
    """(3, 3) rotation of the camera frame about the optical axis, from x to y, that goes with a rotated crop."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float32)


class SyntheticImageData(EpochData):
    """Batches of `SyntheticImages` with tokens; training batches also hold "points" (B, S, 3), canonical vertices, and
    those of validation and test "vertices" (B, V, 3).

    Args:
        body: the body model of the annotations.
        tokenizer: computes the tokens, once.
        folder: folder of the data set, with train/, val/ and test/.
        cache: folder for the tokens.
        batch_size, eval_batch_size: people per step and process, in training and elsewhere.
        crop_size, margin, mirrored, limit, seed: see `SyntheticImages`.
        patch: not used, since these crops are exact either way (`SMPLImages` has it).
        augmentation: how training crops are augmented.
        points: (S,) indices of the vertices used by the training loss.
        workers: processes that read pictures.
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
        super().__init__(batch_size, seed, eval_batch_size, num_workers=workers)
        self.body, self.tokenizer, self.folder, self.cache = body, tokenizer, Path(folder), Path(cache)
        self.crop = {"crop_size": crop_size, "margin": margin, "limit": limit, "seed": seed}
        self.augmentation = {"augmentation": augmentation, "mirrored": mirrored}
        self.points = points

    @property
    def keypoint_regressor(self) -> Tensor:
        """(23, V) regressor of the items' keypoints."""
        return self.body.keypoint_regressor

    def prepare_data(self) -> None:
        """Compute the tokens once, in one process."""
        for split in ("train", "val") if self.trainer.training else ("test",):
            self._with_tokens(split)

    @cached_property
    def _train(self) -> tuple[SyntheticImages, np.ndarray | None]:
        return self._with_tokens("train")

    def train_dataset(self) -> SyntheticImages:
        return self._train[0].at_epoch(self.trainer.current_epoch)

    def fixed_dataset(self, split: str) -> SyntheticImages:
        self._fixed, _ = self._with_tokens(split)
        return self._fixed

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        if not self.trainer.training:
            batch["vertices"] = self._fixed.canonical_meshes(self.body.to(batch["rotmat"].device), batch)
        elif (points := self._train[1]) is not None:
            batch["points"] = torch.from_numpy(points[batch["index"].cpu().numpy()]).to(batch["rotmat"])
        return batch

    def _with_tokens(self, split: str) -> tuple[SyntheticImages, np.ndarray | None]:
        """The images of a split with their tokens, and in training the points (P, S, 3) of their bodies."""
        augmentation, points = (self.augmentation, self.points) if split == "train" else ({}, None)
        images = SyntheticImages(self.folder, split, **self.crop, **augmentation)
        known = images.annotations
        if known.body != self.body.name:
            raise ValueError(
                f"{images.folder} is annotated for the body '{known.body}', "
                f"but the configured body is '{self.body.name}'."
            )
        pose, shape = torch.from_numpy(known.pose), torch.from_numpy(known.shape)
        if images.mirrored:
            pose, shape = torch.cat([pose, self.body.mirror_pose(pose)]), shape.repeat(2, 1)
        batches = [{"pose": p, "shape": s} for p, s in zip(pose.split(_CHUNK), shape.split(_CHUNK), strict=True)]
        # The sum distinguishes two sets of the same size.
        key = f"{self.folder.name}, {split}, {len(pose)} bodies, {pose.sum():.6g}"
        path = self.cache / f"{self.folder.name}_{split}.npz"
        cached = cached_tokens(path, self.tokenizer, self.body, batches, key, points)
        images.set_tokens(cached["tokens"])
        return images, cached.get("points")
