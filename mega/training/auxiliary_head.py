"""A short cut from image features to bodies, for training only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mega_common.distributed import masked_mean
from mesh_vq_vae import MeshVQVAE

_FINER = 4  # maps of keypoints have so many cells, along either side, to a place of the features
_SPREAD = 0.08  # of a keypoint's target in its map, in halves of the crop


class Reading(NamedTuple):
    keypoints: Tensor  # (B, J, 3) canonical, metres
    codes: Tensor  # (B, N, D)
    heat: Tensor  # (B, J, cells) logits of where in the crop each keypoint is
    depth: Tensor  # (B, J) metres from the body's centre along the optical axis


class Readout(nn.Module):
    """Reads keypoints and codes straight off the image features.

    The published backbones come trained on the keypoints of real pictures. Ours comes from ImageNet, and the signal
    that reaches it through a masked transformer is faint; this head gives it a direct one. It is not part of the model.

    Args:
        channels, grid: C and (h, w) of the features.
        tokenizer: whose codes are read; its template is where the canonical keypoints start.
        width: of the hidden layer.

    Source of the maps: Sun et al., Integral Human Pose Regression, ECCV 2018.
    """

    def __init__(self, channels: int, grid: tuple[int, int], tokenizer: MeshVQVAE, width: int = 512):
        super().__init__()
        regressor, codebook = tokenizer.keypoint_regressor, tokenizer.codebook.detach()
        self.n_keypoints, self.n_tokens = len(regressor), tokenizer.n_tokens
        self.maps = nn.Conv2d(channels, 2 * self.n_keypoints * _FINER**2, 1)
        at_each_place = nn.Sequential(nn.Linear(channels, width // 4), nn.GELU())
        n_places = grid[0] * grid[1]
        self.hidden = nn.Sequential(at_each_place, nn.Flatten(), nn.Linear(n_places * width // 4, width), nn.GELU())
        self.keypoints = nn.Linear(width, 3 * self.n_keypoints)
        self.codes = nn.Linear(width, self.n_tokens * tokenizer.latent_dim)
        self.register_buffer("template", regressor @ tokenizer.template, persistent=False)
        self.register_buffer("mean", codebook.mean(0), persistent=False)
        self.register_buffer("std", codebook.std(0), persistent=False)
        y, x = ((2 * torch.arange(_FINER * n) + 1) / (_FINER * n) - 1 for n in grid)  # centres of cells, in [-1, 1]
        cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        self.register_buffer("cells", cells.flatten(0, 1), persistent=False)  # (cells, 2)

    def forward(self, features: Tensor) -> Reading:
        """Features (B, C, h, w) -> what they say of the body."""
        x = self.hidden(features.flatten(2).transpose(1, 2))  # (B, width)
        keypoints = self.template + 0.1 * self.keypoints(x).unflatten(1, (self.n_keypoints, 3))
        codes = self.mean + self.std * self.codes(x).unflatten(1, (self.n_tokens, -1))
        maps = nn.functional.pixel_shuffle(self.maps(features), _FINER)  # (B, 2J, 4h, 4w)
        heat, depth = maps.flatten(2).chunk(2, dim=1)  # (B, J, cells) each
        return Reading(keypoints, codes, heat, (heat.softmax(-1) * depth).sum(-1))

    def losses(self, reading: Reading, codes: Tensor, on_crop: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """How far a reading is off.

        Args:
            codes: (B, N, D), the true ones.
            on_crop: (B, J, 2), where the keypoints are; those outside [-1, 1] are left out.
            depth: (B, J) metres.

        Returns:
            codes: mean squared error in variances of the codebook.
            heat: cross-entropy of the maps against a spot at the true place.
            place: mean distance of the maps' centres of mass from it, in halves of the crop.
            depth: mean absolute error, metres.
        """
        inside = (on_crop.abs() < 1).all(-1)  # (B, J)
        target = torch.softmax(-(self.cells - on_crop[:, :, None]).square().sum(-1) / (2 * _SPREAD**2), dim=-1)
        place = (reading.heat.softmax(-1) @ self.cells - on_crop).norm(dim=-1)
        return {
            "codes": ((reading.codes - codes) / self.std).square().mean(),
            "heat": masked_mean(-(target * reading.heat.log_softmax(-1)).sum(-1), inside),
            "place": masked_mean(place, inside),
            "depth": masked_mean((reading.depth - depth).abs(), inside),
        }
