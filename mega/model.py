"""The models: a masked autoencoder of mesh tokens, alone (VQMAE, a prior over meshes) or given an image (CVQMAE: MEGA).

    image (B, 3, H, W) ─ backbone ─► features (B, C, h, w) ─┬─ average ─► rotation (6-D), camera
                                                            └─ embed ───► condition (B, hw, D) ─┐
    tokens (B, N) ─ drop the masked ones ─► encoder ─► features of cls and visible tokens ──────┴─► decoder ─► logits

`masked` (B, N) bool is True where a token is masked: the encoder sees visible tokens only; the decoder gets a learned
mask token at the other positions. Modules and parameters have the names of the released weights.

What exists only for speed is in `mega.optimize`.

Source: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022; sizes of MEGA, CVPR 2025.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mega_common.distributed import BatchDropout
from mega_common.weights_io import differences

INITS = ("published", "scaled")
# Parameters of an image model that a pre-trained mesh model does not have (`load_pretrained_vqmae`).
IMAGE_KEYS = ("backbone.", *(f"decoder.{n}." for n in ("rotcam_head", "rot_predictor", "cam_predictor", "cond_emb")))


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a masked transformer; the defaults are the published ones."""

    n_tokens: int = 54  # N, tokens per mesh
    codebook_size: int = 512  # K
    dim: int = 1024  # D
    encoder_depth: int = 12
    encoder_heads: int = 4
    decoder_depth: int = 4
    decoder_heads: int = 4
    learned_positions: bool = True  # False: sinusoidal position embeddings
    # "published": PyTorch's initial values. "scaled" helps small models: Xavier for the blocks, small embeddings and
    # head, zero biases.
    init: str = "scaled"

    def __post_init__(self):
        if self.init not in INITS:
            raise ValueError(f"model.init={self.init} is not known; choose from {', '.join(INITS)}")


@dataclass(frozen=True)
class ImageTransformerConfig(TransformerConfig):
    """A masked transformer that is given image features."""

    cond_dim: int | None = None  # C, channels of the image features; None: the backbone's
    cond_dropout: float = 0.0  # probability that an image token is dropped, in training
    rotcam_dropout: float = 0.1  # dropout in the head of rotation and camera
    # Width of the crop in the unit of the camera head: 2 for x2d in [-1, 1], 1 for [-0.5, 0.5] (the published ViT).
    # `rotcam` converts, so that all cameras outside of the head are for a crop in [-1, 1].
    cam_range: float = 2.0


class MaskedEncoder(nn.Module):
    """Visible tokens -> features."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim))
        _add_position_embedding(self, config.n_tokens, config)
        self.proj = nn.Embedding(config.codebook_size, config.dim)
        self.transformer = _blocks(config.dim, config.encoder_depth, config.encoder_heads)
        self.layer_norm = nn.LayerNorm(config.dim)
        _initialise(self, config.init)

    def forward(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """Tokens (B, N) int64, masked (B, N) with the same number in each row -> (B, 1 + n_visible, D), cls first."""
        visible = visible_positions(masked)  # (B, n_visible)
        if visible.shape[1] == 0:
            return self.encode_cls().expand(len(tokens), -1, -1)  # (B, 1, D)
        x = self.proj(tokens) + self.pos_embedding.transpose(0, 1)  # (B, N, D)
        x = x.gather(1, visible[..., None].expand(-1, -1, x.shape[-1]))  # (B, n_visible, D)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, 1 + n_visible, D)
        return self.layer_norm(self.transformer(x))

    def encode_cls(self) -> Tensor:
        """Features (1, 1, D) of cls alone: what the encoder gives for every sample when all tokens are masked."""
        return self.layer_norm(self.transformer(self.cls_token))


class MaskedDecoder(nn.Module):
    """Features of the visible tokens, and of the image if there is one -> logits."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.dim))
        _add_position_embedding(self, config.n_tokens + 1, config)
        self.transformer = _blocks(config.dim, config.decoder_depth, config.decoder_heads)
        self.head = nn.Linear(config.dim, config.codebook_size)
        _initialise(self, config.init)

    def forward(
        self, encoded: Tensor, masked: Tensor, condition: Tensor | None = None, only_masked: bool = False
    ) -> Tensor:
        """Encoded (B, 1 + n_visible, D), masked (B, N), condition (B, L, D) -> logits (B, N, K).

        With `only_masked`: logits (B, n_masked, K) of the masked positions in ascending order.
        """
        n_tokens, dim = masked.shape[1], encoded.shape[-1]
        cls, visible = encoded[:, :1], encoded[:, 1:]  # (B, 1, D), (B, n_visible, D)
        x = self.mask_token.to(encoded.dtype).expand(len(encoded), n_tokens, -1)  # (B, N, D)
        x = x.scatter(1, visible_positions(masked)[..., None].expand(-1, -1, dim), visible)  # (B, N, D)
        x = torch.cat([cls, x], dim=1) + self.pos_embedding.transpose(0, 1)  # (B, 1 + N, D)
        if condition is not None:
            x = torch.cat([condition.to(x.dtype), x], dim=1)  # (B, L + 1 + N, D)
        x = self.transformer[:-1](x)
        # Nobody reads the last block's output for the condition and cls, nor (`only_masked`) for visible tokens.
        wanted = x[:, -n_tokens:]  # (B, N, D)
        if only_masked:
            wanted = wanted.gather(1, visible_positions(~masked)[..., None].expand(-1, -1, dim))  # (B, n_masked, D)
        return self.head(block_at(self.transformer[-1], x, wanted))


def predict_masked(
    model: "VQMAE | CVQMAE", tokens: Tensor, masked: Tensor, condition: Tensor | None = None, only_masked: bool = False
) -> Tensor:
    """Logits (B, N, K) for tokens (B, N), masked (B, N), and a condition (B, L, D) or none.

    With `only_masked` the logits of visible tokens are not computed; they are NaN.

    Samples go through the encoder together if they have equally many masked tokens. Training masks and samplers make
    them so; where ties in a sampler make them differ, each number of masked tokens gets a pass of its own.
    """
    counts = masked.sum(dim=1)
    if (counts != counts[:1]).any():
        groups = [(counts == count).nonzero()[:, 0] for count in counts.unique()]  # indices into the batch
        logits = [
            predict_masked(model, tokens[g], masked[g], None if condition is None else condition[g], only_masked)
            for g in groups
        ]
        return torch.cat(logits)[torch.cat(groups).argsort()]
    logits = model.decoder(model.encoder(tokens, masked), masked, condition, only_masked)
    if not only_masked:
        return logits
    everywhere = logits.new_full((*masked.shape, logits.shape[-1]), math.nan)
    everywhere[masked] = logits.flatten(0, 1)
    return everywhere


class VQMAE(nn.Module):
    """The prior: predicts masked mesh tokens from visible ones. Arguments: see `TransformerConfig`."""

    __signature__ = inspect.signature(TransformerConfig)  # for help(), and for checks of options

    def __init__(self, **config):
        super().__init__()
        config = TransformerConfig(**config)
        self.n_tokens, self.codebook_size = config.n_tokens, config.codebook_size
        self.encoder = MaskedEncoder(config)
        self.decoder = MaskedDecoder(config)

    def forward(self, tokens: Tensor, masked: Tensor, only_masked: bool = False) -> Tensor:
        """Tokens (B, N) int64, masked (B, N) bool -> logits (B, N, K); `only_masked`: see `predict_masked`."""
        return predict_masked(self, tokens, masked, only_masked=only_masked)


class CVQMAE(nn.Module):
    """MEGA: predicts masked mesh tokens from an image and the visible tokens, and rotation and camera from the image.

    The backbone is the costly part: compute `features` once per image and use them as often as needed.

    Args:
        backbone: images (B, 3, H, W) -> features (B, C, h, w) for any h and w. Its `mean` and `std` (RGB, for pixels in
            [0, 1]) are the normalisation of its images; without them it gets images in [0, 1].
        config: see `ImageTransformerConfig`.
    """

    __signature__ = inspect.Signature(
        [
            inspect.Parameter("backbone", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=nn.Module),
            *inspect.signature(ImageTransformerConfig).parameters.values(),
        ]
    )

    def __init__(self, backbone: nn.Module, **config):
        super().__init__()
        config = ImageTransformerConfig(**config)
        if config.cond_dim is None:
            config = replace(config, cond_dim=backbone.out_channels)
        self.n_tokens, self.codebook_size = config.n_tokens, config.codebook_size
        self.backbone = backbone
        self.encoder = MaskedEncoder(config)
        self.decoder = ConditionedDecoder(config)
        for name, default in (("mean", 0.0), ("std", 1.0)):
            value = torch.tensor(getattr(backbone, name, default)).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, features: Tensor, tokens: Tensor, masked: Tensor) -> Tensor:
        """Features (B, C, h, w), tokens (B, N) int64, masked (B, N) bool -> logits (B, N, K)."""
        return self.predict(self.embed_condition(features), tokens, masked)

    def features(self, images: Tensor) -> Tensor:
        """RGB images (B, 3, H, W) in [0, 255], uint8 or float -> features (B, C, h, w) float32."""
        return self.backbone((images.float() / 255 - self.mean) / self.std).float()

    def embed_condition(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> condition (B, hw, D)."""
        return self.decoder.embed_condition(features)

    def predict(self, condition: Tensor, tokens: Tensor, masked: Tensor, only_masked: bool = False) -> Tensor:
        """Condition (B, L, D), tokens and masked (B, N) -> logits (B, N, K); `only_masked`: see `predict_masked`."""
        return predict_masked(self, tokens, masked, condition, only_masked)

    def rotcam(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) -> rot6d (B, 6), cam (B, 3) = (s, tx, ty) for a crop in [-1, 1]."""
        return self.decoder.rotcam(features)


class ConditionedDecoder(MaskedDecoder):
    """The decoder with the embedding of the image features and the heads that predict rotation and camera from them."""

    def __init__(self, config: ImageTransformerConfig):
        super().__init__(config)
        dim, p = config.dim, config.rotcam_dropout
        self.cam_range = config.cam_range
        self.rotcam_head = nn.Sequential(
            nn.Linear(config.cond_dim, dim), BatchDropout(p), nn.Linear(dim, dim), BatchDropout(p)
        )
        self.rot_predictor = nn.Linear(dim, 6)
        self.cam_predictor = nn.Linear(dim, 3)
        self.cond_emb = nn.Linear(config.cond_dim, dim)
        self.cond_dropout = BatchDropout(config.cond_dropout, shared_axes=1)
        # An untrained model predicts a body that stands upright, faces the camera and fills 90 % of the crop.
        upright, filling = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), (0.9 * config.cam_range / 2, 0.0, 0.0)
        for head, bias in ((self.rot_predictor, upright), (self.cam_predictor, filling)):
            nn.init.xavier_uniform_(head.weight, gain=0.01)
            head.bias.data.copy_(torch.tensor(bias))

    def embed_condition(self, features: Tensor) -> Tensor:
        x = self.cond_emb(features.flatten(2).transpose(1, 2))  # (B, hw, D)
        return self.cond_dropout(x + sinusoidal_positions(x.shape[1], x.shape[2], x.device))

    def rotcam(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.rotcam_head(features.mean(dim=(2, 3)))  # (B, D)
        scale, shift = self.cam_predictor(x).split([1, 2], dim=-1)  # x2d = scale * (X + shift)
        return self.rot_predictor(x), torch.cat([scale * (2 / self.cam_range), shift], dim=-1)


def load_pretrained_vqmae(model: CVQMAE, state: Mapping[str, Tensor]) -> list[str]:
    """Load the weights of a `VQMAE` of the same size into an image model, to start its training from.

    Returns:
        The keys that keep their initial values: backbone, condition embedding, rotation and camera heads.

    Raises ValueError when any other key is missing, left over or of another shape; names them.
    """
    own = model.state_dict()
    new = [key for key in own if key.startswith(IMAGE_KEYS)]
    if found := differences({k: v for k, v in own.items() if k not in new}, state):
        raise ValueError(f"The pre-trained VQMAE does not fit this CVQMAE: {found}.")
    model.load_state_dict({**own, **state}, strict=True)
    return new


# Masks and the loss


def scheduled_visible_count(n_tokens: int, u: float) -> int:
    """How many of `n_tokens` stay visible at u in [0, 1): a share 1 - cos(pi/2 u), rounded down; never all of them."""
    return min(int(n_tokens * (1 - math.cos(math.pi / 2 * u))), n_tokens - 1)


def sample_mask(batch: int, n_tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw a training mask (B, N) bool, on the generator's device: one share for the batch, positions per sample.

    All samples have the same number of masked tokens. (The published mask counts cls as well, and so leaves one masked
    token per sample out of the loss; this one does not.)
    """
    device = generator.device if generator is not None else None
    u = torch.rand((), generator=generator, device=device).item()
    rank = torch.rand(batch, n_tokens, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    return rank >= scheduled_visible_count(n_tokens, u)


def visible_positions(masked: Tensor) -> Tensor:
    """Indices (B, n_visible) of the visible tokens in ascending order; each sample must have the same number."""
    n_visible = masked.shape[1] - int(masked[:1].sum())
    return masked.to(torch.uint8).argsort(dim=1, stable=True)[:, :n_visible]


def masked_cross_entropy(logits: Tensor, tokens: Tensor, masked: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy at the masked positions of logits (B, N, K) and true tokens (B, N); zero when none is masked.

    Zero comes with a gradient of zero.
    """
    if not masked.any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits[masked].float(), tokens[masked], label_smoothing=label_smoothing)


# Layers


# timm's default for eps has changed between releases; the released weights were trained with this one.
_BlockNorm = partial(nn.LayerNorm, eps=1e-5)


def _blocks(dim: int, depth: int, heads: int) -> nn.Sequential:
    """Pre-norm transformer blocks (B, L, D) -> (B, L, D)."""
    return nn.Sequential(*(Block(dim, heads, norm_layer=_BlockNorm) for _ in range(depth)))


def block_at(block: Block, x: Tensor, wanted: Tensor) -> Tensor:
    """The output of a transformer block for some tokens (B, M, D) of its input x (B, L, D): (B, M, D).

    Keys and values come from all of x; queries, projection and MLP are computed for the wanted tokens only.
    """
    attention, dim = block.attn, x.shape[-1]
    query, key_value = attention.qkv.weight.split([dim, 2 * dim])
    q = F.linear(block.norm1(wanted).to(query.dtype), query)  # (B, M, D)
    k, v = F.linear(block.norm1(x).to(query.dtype), key_value).chunk(2, dim=-1)  # (B, L, D) each
    q, k, v = (y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, M, D)
    wanted = wanted + attention.proj(attended)
    return wanted + block.mlp(block.norm2(wanted))


def sinusoidal_positions(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed positions (length, dim): sines in even channels, cosines in odd ones, wavelengths up to 10000 * 2 pi."""
    position = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    frequency = torch.pow(10000.0, -torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angle = position * frequency  # (length, dim / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


def _add_position_embedding(module: nn.Module, length: int, config: TransformerConfig) -> None:
    """Give a module its `pos_embedding` (length, 1, D)."""
    if config.learned_positions:
        module.pos_embedding = nn.Parameter(torch.empty(length, 1, config.dim))
        nn.init.trunc_normal_(module.pos_embedding, std=0.02)
    else:
        module.register_buffer("pos_embedding", sinusoidal_positions(length, config.dim)[:, None], persistent=False)


@torch.no_grad()
def _initialise(module: nn.Module, init: str) -> None:
    """Initial values of an encoder or a decoder, see `TransformerConfig.init`."""
    small = ("cls_token", "mask_token") + (("proj.weight", "head.weight") if init == "scaled" else ())
    for name, parameter in module.named_parameters():
        if name in small:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif init == "published":
            continue
        elif name.startswith("transformer.") and parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
