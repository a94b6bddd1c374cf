"""The masked autoencoder of both models: an encoder that sees visible tokens only, a decoder that fills the rest.

                 visible tokens                        logits (B, N, K)
                       │                                      ▲
    [cls] + embedding + position              drop condition and cls, head
                       │                                      │
                encoder blocks ──► [condition,] cls, tokens with mask_token in the gaps + position ──► decoder blocks

What nobody reads is not computed: of the decoder's last block only the rows of the tokens, and for the samplers only
those of the hidden ones (`only_hidden`).

Names of modules and parameters are those of the released weights. Layout: He et al., Masked Autoencoders, CVPR 2022.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mega.models.masking import hidden_places, visible_places

# "published": torch's own for embeddings, N(0, 1), and linear layers. "scaled": small normal embeddings, Xavier for the
# blocks' linear layers, a small head, biases zero, which helps a small model. Tokens and positions are small in both.
INITS = ("published", "scaled")
# timm's own default for the eps has changed between releases; the released weights were trained with this one.
_BlockNorm = partial(nn.LayerNorm, eps=1e-5)


def blocks(dim: int, depth: int, heads: int) -> nn.Sequential:
    """Pre-norm transformer blocks (B, N, D) -> (B, N, D), with fused attention where torch has it."""
    return nn.Sequential(*(Block(dim, heads, norm_layer=_BlockNorm) for _ in range(depth)))


def block_at(block: Block, x: Tensor, rows: Tensor) -> Tensor:
    """What `block`, one of `blocks`, makes of some rows (B, M, D) of x (B, L, D): (B, M, D).

    Keys and values come from all of x; queries, projection and MLP are computed for the rows alone.
    """
    attention, dim = block.attn, x.shape[-1]
    query, key_value = attention.qkv.weight.split([dim, 2 * dim])
    q = F.linear(block.norm1(rows).to(query.dtype), query)  # (B, M, D)
    k, v = F.linear(block.norm1(x).to(query.dtype), key_value).chunk(2, dim=-1)  # (B, L, D) each
    q, k, v = (y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, M, D)
    rows = rows + attention.proj(mixed)
    return rows + block.mlp(block.norm2(rows))


def sinusoidal_positions(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed positions (length, dim): sines at even channels, cosines at odd ones, wavelengths up to 10000 * 2 pi."""
    place = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    frequency = torch.pow(10000.0, -torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angle = place * frequency  # (length, dim / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


class _Positions(nn.Module):
    """Adds a position to every token. Its parameter, if learned, belongs to the module that inherits from this."""

    def _make_positions(self, length: int, dim: int, learned: bool) -> None:
        if learned:
            self.pos_embedding = nn.Parameter(torch.empty(length, 1, dim))
            nn.init.trunc_normal_(self.pos_embedding, std=0.02)
        else:
            self.register_buffer("pos_embedding", sinusoidal_positions(length, dim)[:, None], persistent=False)

    def _add_positions(self, tokens: Tensor) -> Tensor:
        return tokens + self.pos_embedding.transpose(0, 1)  # (B, N, D) + (1, N, D)


class MaskedEncoder(_Positions):
    """Visible tokens -> features, cls first."""

    def __init__(
        self,
        n_tokens: int,
        codebook_size: int,
        dim: int,
        depth: int,
        heads: int,
        learned_positions: bool = True,
        init: str = "scaled",
    ):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self._make_positions(n_tokens, dim, learned_positions)
        self.proj = nn.Embedding(codebook_size, dim)
        self.transformer = blocks(dim, depth, heads)
        self.layer_norm = nn.LayerNorm(dim)
        self.register_buffer("cls_alone", None, persistent=False)  # (1, 1, D) once `freeze` was called
        _initialise(self, init)

    def forward(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Tokens (B, N) int64 and hidden (B, N) bool, the same number in every row, -> (B, 1 + n_visible, D).

        Tokens at hidden places are never looked at.
        """
        keep = visible_places(hidden)  # (B, n_visible)
        if keep.shape[1] == 0:  # all that is left is cls, alike for every sample: one is enough
            x = self._of_cls_alone() if self.cls_alone is None else self.cls_alone
            return x.expand(len(tokens), -1, -1)
        x = self._add_positions(self.proj(tokens))  # (B, N, D)
        x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))  # (B, n_visible, D)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, 1 + n_visible, D)
        return self.layer_norm(self.transformer(x))

    @torch.no_grad()
    def freeze(self) -> None:
        """Remember the features of cls alone, which depend on nothing but the weights: those must not change any more.

        All weights are read for this one token, which is a good part of a prediction's time where only one is made.
        """
        self.cls_alone = self._of_cls_alone()

    def _of_cls_alone(self) -> Tensor:
        return self.layer_norm(self.transformer(self.cls_token))  # (1, 1, D)


class MaskedDecoder(_Positions):
    """Features of the visible tokens -> logits for all."""

    def __init__(
        self,
        n_tokens: int,
        codebook_size: int,
        dim: int,
        depth: int,
        heads: int,
        learned_positions: bool = True,
        init: str = "scaled",
    ):
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self._make_positions(n_tokens + 1, dim, learned_positions)
        self.transformer = blocks(dim, depth, heads)
        self.head = nn.Linear(dim, codebook_size)
        _initialise(self, init)

    def forward(
        self, encoded: Tensor, hidden: Tensor, condition: Tensor | None = None, only_hidden: bool = False
    ) -> Tensor:
        """Fill the hidden places.

        Args:
            encoded: (B, 1 + n_visible, D) from the encoder.
            hidden: (B, N) bool, the encoder's.
            condition: (B, L, D) further tokens, put in front.
            only_hidden: leave the visible places out.

        Returns:
            logits (B, N, K), or (B, n_hidden, K) of the hidden places in ascending order.
        """
        n_tokens, dim = hidden.shape[1], encoded.shape[-1]
        cls, visible = encoded[:, :1], encoded[:, 1:]
        place = visible_places(hidden)[..., None].expand(-1, -1, dim)  # (B, n_visible, D)
        x = self.mask_token.to(encoded.dtype).expand(len(encoded), n_tokens, -1)
        x = x.scatter(1, place, visible)  # (B, N, D)
        x = self._add_positions(torch.cat([cls, x], dim=1))  # (B, 1 + N, D)
        if condition is not None:
            x = torch.cat([condition.to(x.dtype), x], dim=1)  # (B, L + 1 + N, D)
        x = self.transformer[:-1](x)
        rows = x[:, -n_tokens:]  # (B, N, D)
        if only_hidden:
            rows = rows.gather(1, hidden_places(hidden)[..., None].expand(-1, -1, dim))  # (B, n_hidden, D)
        return self.head(block_at(self.transformer[-1], x, rows))


def fill_in(
    encoder: MaskedEncoder,
    decoder: MaskedDecoder,
    tokens: Tensor,
    hidden: Tensor,
    condition: Tensor | None = None,
    only_hidden: bool = False,
) -> Tensor:
    """Logits (B, N, K) for tokens (B, N) of which `hidden` (B, N) are not seen, with a condition (B, L, D) or none.

    With `only_hidden` the logits of visible places are not computed: they are NaN, which shows if anyone reads them.

    The encoder drops hidden tokens, so rows go through it together only if they hide equally many. Training masks and
    samplers see to that; where ties in a sampler make rows differ, each number gets a pass of its own.
    """
    counts = hidden.sum(dim=1)
    if (counts != counts[0]).any():
        parts = [(counts == count).nonzero()[:, 0] for count in counts.unique()]  # row numbers
        logits = [
            fill_in(encoder, decoder, tokens[p], hidden[p], None if condition is None else condition[p], only_hidden)
            for p in parts
        ]
        return torch.cat(logits)[torch.cat(parts).argsort()]
    logits = decoder(encoder(tokens, hidden), hidden, condition, only_hidden)
    if not only_hidden:
        return logits
    everywhere = logits.new_full((*hidden.shape, logits.shape[-1]), math.nan)
    everywhere[hidden] = logits.flatten(0, 1)
    return everywhere


@torch.no_grad()
def _initialise(module: nn.Module, init: str) -> None:
    """Initial values of an encoder or a decoder, one of `INITS`."""
    if init not in INITS:
        raise ValueError(f"model.init={init} is not known; choose from {', '.join(INITS)}")
    if init == "published":
        small = ("cls_token", "mask_token")
    else:
        small = ("cls_token", "mask_token", "proj.weight", "head.weight")
    for name, parameter in module.named_parameters():
        if name in small:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif init == "published":
            continue
        elif name.startswith("transformer.") and parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
