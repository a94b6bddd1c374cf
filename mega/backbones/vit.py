"""ViT-H/16 of ViTPose, for images of any size; names as in the released weights."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mega_common.distributed import BatchDropout

_Norm = partial(nn.LayerNorm, eps=1e-6)


class ViT(nn.Module):
    """Images (B, 3, H, W), normalised by `mean` and `std`, -> features (B, dim, h, w), h = H / 16 and w = W / 16.

    Args:
        position_grid: (h, w) of the learned positions, which are interpolated to the grid of the image.
        dim, depth, heads: sizes of the transformer; `out_channels` is dim.
        columns_cut: image columns that are cut off at the left and at the right: ViTPose sees 256 x 192 px of a crop of
            256 x 256 px.
        drop_path: stochastic depth, in training only: the probability that an image skips the attention of the last
            block, and that it skips its MLP. It grows linearly over the blocks, from 0 in the first.

    Sources: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; Xu et al., ViTPose, NeurIPS 2022; Huang et
    al., Deep Networks with Stochastic Depth, ECCV 2016.
    """

    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    def __init__(
        self,
        position_grid: tuple[int, int] = (16, 12),
        dim: int = 1280,
        depth: int = 32,
        heads: int = 16,
        columns_cut: int = 0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.out_channels, self.position_grid, self.columns_cut = dim, tuple(position_grid), columns_cut
        n_positions = self.position_grid[0] * self.position_grid[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + n_positions, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.patch_embed = nn.Module()
        # With patches of 16 px, a padding of 2 px adds no patch: it moves all of them by 2 px.
        self.patch_embed.proj = nn.Conv2d(3, dim, kernel_size=16, stride=16, padding=2)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True, norm_layer=_Norm) for _ in range(depth)))
        for block, p in zip(self.blocks, torch.linspace(0, drop_path, depth, device="cpu").tolist(), strict=True):
            block.drop_path1, block.drop_path2 = BatchDropout(p, shared_axes=2), BatchDropout(p, shared_axes=2)
        self.last_norm = _Norm(dim)

    def forward(self, images: Tensor) -> Tensor:
        if self.columns_cut:
            images = images[..., self.columns_cut : -self.columns_cut]
        x = self.patch_embed.proj(images)  # (B, D, h, w)
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + self._positions(grid)  # (B, hw, D)
        x = self.last_norm(self.blocks(x))
        return x.transpose(1, 2).unflatten(2, grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, h * w, D) for a grid (h, w). The first position, once of a class token, is added to all others."""
        first, positions = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if tuple(grid) != self.position_grid:
            positions = positions.transpose(1, 2).unflatten(2, self.position_grid)
            positions = F.interpolate(positions, size=tuple(grid), mode="bicubic", align_corners=False)
            positions = positions.flatten(2).transpose(1, 2)
        return first + positions
