"""Annotated pictures as training and test items."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import roma
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mega.bodies import MIRRORED_KEYPOINTS
from mega.data.annotations import Annotations
from mega.data.augmentation import Augmentation
from mega.geometry import crop_matrix, square_box, square_crop, warp_crop


class ImageDataset(Dataset):
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
        self.annotations = Annotations.load(self.folder / "annotations.npz").select(slice(limit))
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

    def at_epoch(self, epoch: int) -> ImageDataset:
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
