"""Which tokens the model may see: `hidden` (B, N) bool is True where a token is masked.

Dropout that several processes can share.

The masked autoencoder of both models: an encoder that sees visible tokens only, a decoder that fills the rest.

                 visible tokens                        logits (B, N, K)
                       │                                      ▲
    [cls] + embedding + position              drop condition and cls, head
                       │                                      │
                encoder blocks ──► [condition,] cls, tokens with mask_token in the gaps + position ──► decoder blocks

What nobody reads is not computed: of the decoder's last block only the rows of the tokens, and for the samplers only
those of the hidden ones (`only_hidden`).

Names of modules and parameters are those of the released weights. Layout: He et al., Masked Autoencoders, CVPR 2022.

VQMAE: the masked autoencoder of mesh tokens alone, a prior over human meshes. MEGA starts from its weights.

CVQMAE: the masked autoencoder of mesh tokens that sees a picture, which is MEGA.

    images (B, 3, H, W) ──backbone──► features (B, C, h, w) ──embed──► condition (B, hw, D) ──┐
                                            │                                              decoder ──► logits (B, N, K)
                                            └─average─► rot6d, cam       tokens ──encoder────┘

The backbone is the costly part: run `features` once a picture and hand the result to the rest as often as needed.
"""

import math
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mega_common.distributed import draw_rows
from mega_common.weights_io import differences


def scheduled_visible_count(n_tokens: int, u: float) -> int:
    """How many of `n_tokens` stay visible at u in [0, 1): a share 1 - cos(pi/2 u), rounded down; never all of them."""
    return min(int(n_tokens * (1 - math.cos(math.pi / 2 * u))), n_tokens - 1)


def draw_hidden(batch: int, n_tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw a training mask: one share for the whole batch, the places anew for every sample.

    Returns:
        (B, N) bool on the generator's device, every row with exactly the same number of hidden tokens. (The published
        mask counts the cls place too and so leaves one hidden token a row out of the loss; this one does not.)
    """
    device = generator.device if generator is not None else None
    u = torch.rand((), generator=generator, device=device).item()
    rank = torch.rand(batch, n_tokens, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    return rank >= scheduled_visible_count(n_tokens, u)


def visible_places(hidden: Tensor) -> Tensor:
    """Indices (B, n_visible) of the visible tokens in ascending order; all rows must have the same number of them."""
    n_visible = hidden.shape[1] - int(hidden[0].sum())
    return hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :n_visible]


def hidden_places(hidden: Tensor) -> Tensor:
    """Indices (B, n_hidden) of the hidden tokens in ascending order; all rows must have the same number of them."""
    return visible_places(~hidden)


def masked_cross_entropy(logits: Tensor, tokens: Tensor, hidden: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the hidden places only; zero (with a gradient of zero) when none is hidden.

    Args:
        logits: (B, N, K).
        tokens: (B, N) int64, the truth.
        hidden: (B, N) bool.
    """
    if not hidden.any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits[hidden].float(), tokens[hidden], label_smoothing=label_smoothing)


class BatchDropout(nn.Module):
    """Dropout whose mask is drawn for the rows of all processes: a batch that is shared out is dropped from alike.

    Args:
        p: probability of being dropped.
        whole: drop all channels of a place, not single ones.
    """

    def __init__(self, p: float, whole: bool = False):
        super().__init__()
        self.p, self.whole = p, whole

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, D) -> the same shape; in eval mode unchanged."""
        if not self.training or self.p == 0:
            return x
        places = (*x.shape[1:-1], 1 if self.whole else x.shape[-1])
        keep = draw_rows(lambda n: torch.rand(n, *places, device=x.device), len(x)) >= self.p
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, whole={self.whole}"


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


class VQMAE(nn.Module):
    """Predicts hidden mesh tokens from visible ones.

    Args:
        n_tokens: N, tokens a mesh.
        codebook_size: K.
        dim: D, channels of encoder and decoder.
        encoder_depth, encoder_heads, decoder_depth, decoder_heads: blocks and attention heads.
        learned_positions: learned position embeddings; False for fixed sinusoidal ones.
        init: initial values, one of `transformer.INITS`.

    The defaults are the published size (MEGA, CVPR 2025).
    """

    def __init__(
        self,
        n_tokens: int = 54,
        codebook_size: int = 512,
        dim: int = 1024,
        encoder_depth: int = 12,
        encoder_heads: int = 4,
        decoder_depth: int = 4,
        decoder_heads: int = 4,
        learned_positions: bool = True,
        init: str = "scaled",
    ):
        super().__init__()
        self.n_tokens, self.codebook_size = n_tokens, codebook_size
        self.encoder = MaskedEncoder(
            n_tokens, codebook_size, dim, encoder_depth, encoder_heads, learned_positions, init
        )
        self.decoder = MaskedDecoder(
            n_tokens, codebook_size, dim, decoder_depth, decoder_heads, learned_positions, init
        )

    def forward(self, tokens: Tensor, hidden: Tensor, only_hidden: bool = False) -> Tensor:
        """Tokens (B, N) int64 and hidden (B, N) bool -> logits (B, N, K) for every place, hidden or not.

        With `only_hidden` those of visible places are NaN, and cost nothing.
        """
        return fill_in(self.encoder, self.decoder, tokens, hidden, only_hidden=only_hidden)


# What an image model has beyond the pre-trained mesh model (`load_pretrained_vqmae`).
IMAGE_KEYS = ("backbone.", *(f"decoder.{n}." for n in ("rotcam_head", "rot_predictor", "cam_predictor", "cond_emb")))
# Where the predictions of an untrained model start: a body upright and facing the camera, that fills the crop.
_UPRIGHT_ROT6D = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
_FILLING_SCALE = 0.9  # of the camera, on a crop in [-1, 1]


class ConditionedDecoder(MaskedDecoder):
    """The decoder with image tokens in front, and the heads that read rotation and camera off the image features."""

    def __init__(
        self,
        n_tokens: int,
        codebook_size: int,
        dim: int,
        depth: int,
        heads: int,
        learned_positions: bool = True,
        init: str = "scaled",
        *,
        cond_dim: int,
        cond_dropout: float = 0.0,
        rotcam_dropout: float = 0.1,
        cam_range: float = 2.0,
    ):
        super().__init__(n_tokens, codebook_size, dim, depth, heads, learned_positions, init)
        self.cam_range = cam_range
        self.rotcam_head = nn.Sequential(
            nn.Linear(cond_dim, dim), BatchDropout(rotcam_dropout), nn.Linear(dim, dim), BatchDropout(rotcam_dropout)
        )
        self.rot_predictor = nn.Linear(dim, 6)
        self.cam_predictor = nn.Linear(dim, 3)
        self.cond_emb = nn.Linear(cond_dim, dim)
        self.cond_dropout = BatchDropout(cond_dropout, whole=True)
        filling_cam = (_FILLING_SCALE * cam_range / 2, 0.0, 0.0)
        for head, start in ((self.rot_predictor, _UPRIGHT_ROT6D), (self.cam_predictor, filling_cam)):
            nn.init.xavier_uniform_(head.weight, gain=0.01)
            head.bias.data.copy_(torch.tensor(start))

    def embed_condition(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> condition tokens (B, hw, D), row by row. Dropout takes whole tokens."""
        x = self.cond_emb(features.flatten(2).transpose(1, 2))  # (B, hw, D)
        return self.cond_dropout(x + sinusoidal_positions(x.shape[1], x.shape[2], x.device))

    def rotcam(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) -> rot6d (B, 6), cam (B, 3) on a crop in [-1, 1], whatever the head's unit."""
        x = self.rotcam_head(features.mean(dim=(2, 3)))  # (B, D)
        scale, shift = self.cam_predictor(x).split([1, 2], dim=-1)  # x2d = scale * (X + shift)
        return self.rot_predictor(x), torch.cat([scale * (2 / self.cam_range), shift], dim=-1)


class CVQMAE(nn.Module):
    """Predicts hidden mesh tokens from a picture and the visible tokens, and how the body is turned and placed.

    Args:
        backbone: images (B, 3, H, W) -> features (B, C, h, w), with any h and w: the condition follows the feature map.
        n_tokens … init: see `VQMAE`.
        cond_dim: C; by default the backbone's `out_channels`.
        cond_dropout: probability, in training, that an image token is dropped from the condition.
        rotcam_dropout: dropout in the head of rotation and camera.
        cam_range: width of the crop in the unit that the camera head predicts in: 2 for x2d in [-1, 1], 1 for
            [-0.5, 0.5] (the published ViT). `rotcam` converts, so all that calls it has cameras on [-1, 1].
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_tokens: int = 54,
        codebook_size: int = 512,
        dim: int = 1024,
        encoder_depth: int = 12,
        encoder_heads: int = 4,
        decoder_depth: int = 4,
        decoder_heads: int = 4,
        learned_positions: bool = True,
        init: str = "scaled",
        cond_dim: int | None = None,
        cond_dropout: float = 0.0,
        rotcam_dropout: float = 0.1,
        cam_range: float = 2.0,
    ):
        super().__init__()
        self.n_tokens, self.codebook_size = n_tokens, codebook_size
        self.backbone = backbone
        self.encoder = MaskedEncoder(
            n_tokens, codebook_size, dim, encoder_depth, encoder_heads, learned_positions, init
        )
        self.decoder = ConditionedDecoder(
            n_tokens,
            codebook_size,
            dim,
            decoder_depth,
            decoder_heads,
            learned_positions,
            init,
            cond_dim=backbone.out_channels if cond_dim is None else cond_dim,
            cond_dropout=cond_dropout,
            rotcam_dropout=rotcam_dropout,
            cam_range=cam_range,
        )

    def features(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, C, h, w), float32 whatever the backbone computes in."""
        return self.backbone(images).float()

    def embed_condition(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> condition tokens (B, hw, D)."""
        return self.decoder.embed_condition(features)

    def predict(self, condition: Tensor, tokens: Tensor, hidden: Tensor, only_hidden: bool = False) -> Tensor:
        """Condition (B, L, D), tokens (B, N) int64 and hidden (B, N) bool -> logits (B, N, K).

        With `only_hidden` those of visible places are NaN, and cost nothing.
        """
        return fill_in(self.encoder, self.decoder, tokens, hidden, condition, only_hidden)

    def forward(self, features: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Features (B, C, h, w), tokens (B, N) int64 and hidden (B, N) bool -> logits (B, N, K)."""
        return self.predict(self.embed_condition(features), tokens, hidden)

    def rotcam(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation rot6d (B, 6) and camera (s, tx, ty) (B, 3), on a crop in [-1, 1], of features (B, C, h, w).

        Tokens have no part in them.
        """
        return self.decoder.rotcam(features)


def load_pretrained_vqmae(model: CVQMAE, state: Mapping[str, Tensor]) -> list[str]:
    """Start an image model from the weights of a `VQMAE` of the same size.

    Returns:
        The keys that are new and keep their initial values: backbone, condition embedding, rotation and camera heads.

    Raises:
        ValueError: when any other key is missing, left over or of another shape; names them.
    """
    own = model.state_dict()
    new = [key for key in own if key.startswith(IMAGE_KEYS)]
    if found := differences({k: v for k, v in own.items() if k not in new}, state):
        raise ValueError(f"The pre-trained VQMAE does not fit this CVQMAE: {found}.")
    model.load_state_dict({**own, **state}, strict=True)
    return new
