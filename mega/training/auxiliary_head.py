"""An auxiliary head that predicts the body directly from image features, for training only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mega_common.distributed import masked_mean
from mesh_vq_vae import MeshVQVAE

_UPSAMPLING = 4  # cells of a keypoint's heatmap along either side of one feature cell
_HEATMAP_STD = 0.08  # of the Gaussian target, in crop coordinates
# They bring each loss to the order of one at the start of a training.
LOSS_WEIGHTS = {"codes": 1.0, "heatmaps": 0.3, "position": 3.0, "depth": 5.0}


class AuxiliaryHead(nn.Module):
    """Predicts keypoints and token codes from the image features, without the transformer.

    The published backbones are pre-trained on keypoints of real images. A backbone from ImageNet gets only a weak
    gradient through the masked transformer; this head gives it a direct one. It is not part of the exported model.

    Args:
        channels, grid: C and (h, w) of the features.
        tokenizer: its codes are the target; its template is the starting point of the canonical keypoints.
        width: of the hidden layer.

    Source of the heatmaps: Sun et al., Integral Human Pose Regression, ECCV 2018.
    """

    def __init__(self, channels: int, grid: tuple[int, int], tokenizer: MeshVQVAE, width: int = 512):
        super().__init__()
        regressor, codebook = tokenizer.keypoint_regressor, tokenizer.codebook.detach()
        self.n_keypoints, self.n_tokens = len(regressor), tokenizer.n_tokens
        self.maps = nn.Conv2d(channels, 2 * self.n_keypoints * _UPSAMPLING**2, 1)
        per_cell = nn.Sequential(nn.Linear(channels, width // 4), nn.GELU())
        self.trunk = nn.Sequential(per_cell, nn.Flatten(), nn.Linear(grid[0] * grid[1] * width // 4, width), nn.GELU())
        self.keypoints = nn.Linear(width, 3 * self.n_keypoints)
        self.codes = nn.Linear(width, self.n_tokens * tokenizer.latent_dim)
        self.register_buffer("template", regressor @ tokenizer.template, persistent=False)
        self.register_buffer("mean", codebook.mean(0), persistent=False)
        self.register_buffer("std", codebook.std(0), persistent=False)
        y, x = ((2 * torch.arange(_UPSAMPLING * n) + 1) / (_UPSAMPLING * n) - 1 for n in grid)  # centres of cells
        cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        self.register_buffer("cells", cells.flatten(0, 1), persistent=False)  # (cells, 2) in [-1, 1]

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Features (B, C, h, w) -> keypoints (B, J, 3) canonical, metres; codes (B, N, D); heatmaps (B, J, cells),
        logits of each keypoint's position on the crop; depth (B, J), metres from the body's centre.
        """
        x = self.trunk(features.flatten(2).transpose(1, 2))  # (B, width)
        maps = nn.functional.pixel_shuffle(self.maps(features), _UPSAMPLING)  # (B, 2J, 4h, 4w)
        heatmaps, depth = maps.flatten(2).chunk(2, dim=1)  # (B, J, cells) each
        return {
            "keypoints": self.template + 0.1 * self.keypoints(x).unflatten(1, (self.n_keypoints, 3)),
            "codes": self.mean + self.std * self.codes(x).unflatten(1, (self.n_tokens, -1)),
            "heatmaps": heatmaps,
            "depth": (heatmaps.softmax(-1) * depth).sum(-1),
        }

    def losses(self, predicted: dict[str, Tensor], codes: Tensor, on_crop: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """Losses of what `forward` returns.

        Args:
            codes: (B, N, D), the true ones.
            on_crop: (B, J, 2), true keypoints in crop coordinates; those outside [-1, 1] are left out.
            depth: (B, J) metres.

        Returns:
            codes: mean squared error, in variances of the codebook.
            heatmaps: cross-entropy against a Gaussian at the true position.
            position: mean distance from the heatmaps' centres of mass to it, in crop coordinates.
            depth: mean absolute error, metres.
        """
        inside = (on_crop.abs() < 1).all(-1)  # (B, J)
        squared = (self.cells - on_crop[:, :, None]).square().sum(-1)  # (B, J, cells)
        target = torch.softmax(-squared / (2 * _HEATMAP_STD**2), dim=-1)
        heatmaps = predicted["heatmaps"]
        return {
            "codes": ((predicted["codes"] - codes) / self.std).square().mean(),
            "heatmaps": masked_mean(-(target * heatmaps.log_softmax(-1)).sum(-1), inside),
            "position": masked_mean((heatmaps.softmax(-1) @ self.cells - on_crop).norm(dim=-1), inside),
            "depth": masked_mean((predicted["depth"] - depth).abs(), inside),
        }
