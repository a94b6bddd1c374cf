"""The models of the golden files, built from the sizes that the files state."""

import torch
from torch import Tensor, nn

from mega.model import CVQMAE, VQMAE


def sizes(config: dict) -> dict:
    """The published names of the sizes -> the arguments of our models."""
    return {
        "n_tokens": config["seq_length"],
        "codebook_size": config["num_embeddings"],
        "dim": config["emb_dim"],
        "encoder_depth": config["encoder_layer"],
        "encoder_heads": config["encoder_head"],
        "decoder_depth": config["decoder_layer"],
        "decoder_heads": config["decoder_head"],
        "learned_positions": config.get("trainable_position", True),
    }


def build_vqmae(config: dict) -> VQMAE:
    return VQMAE(**sizes(config))


def build_cvqmae(config: dict) -> CVQMAE:
    """With the identity for a backbone: images are features."""
    return CVQMAE(nn.Identity(), **sizes(config), cond_dim=config["cond_dim"], cond_dropout=config["cond_dropout"])


def published_mask(masked: Tensor, backward_indexes: Tensor) -> Tensor:
    """The published mask (B, N): 1 where masked, except for the first masked token in the published random order.

    `backward_indexes` (N, B) is the place of every token in that order, which has the visible tokens first.
    """
    n_visible = (~masked).sum(dim=1, keepdim=True)
    return (n_visible < backward_indexes.T).float()


def assert_order_fits(masked: Tensor, backward_indexes: Tensor) -> None:
    """`backward_indexes` (N, B) holds one order of the tokens for each sample, the visible ones first."""
    order = backward_indexes.T
    assert torch.equal(order.sort(dim=1).values, torch.arange(order.shape[1]).expand_as(order))
    n_visible = (~masked).sum(dim=1, keepdim=True)
    assert torch.equal(order >= n_visible, masked)
