"""CVQMAE: the masked autoencoder of mesh tokens that sees a picture, which is MEGA.

    images (B, 3, H, W) ──backbone──► features (B, C, h, w) ──embed──► condition (B, hw, D) ──┐
                                            │                                              decoder ──► logits (B, N, K)
                                            └─average─► rot6d, cam       tokens ──encoder────┘

The backbone is the costly part: run `features` once a picture and hand the result to the rest as often as needed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mega.models.dropout import BatchDropout
from mega.models.transformer import MaskedDecoder, MaskedEncoder, fill_in, sinusoidal_positions
from mesh_vq_vae.files import differences

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
