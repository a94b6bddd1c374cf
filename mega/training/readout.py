"""A short cut from image features to bodies, for training only."""

from __future__ import annotations

from torch import Tensor, nn

from mesh_vq_vae import MeshVQVAE


class Readout(nn.Module):
    """Reads keypoints and codes straight off the image features.

    The published backbones come trained on the keypoints of real pictures. Ours comes from ImageNet, and the signal
    that reaches it through a masked transformer is faint; this head gives it a direct one. It is not part of the model.

    Args:
        channels, places: C and h * w of the features.
        tokenizer: whose codes are read; its template is where the keypoints start.
        width: of the hidden layer.
    """

    def __init__(self, channels: int, places: int, tokenizer: MeshVQVAE, width: int = 512):
        super().__init__()
        regressor, codebook = tokenizer.keypoint_regressor, tokenizer.codebook.detach()
        self.n_keypoints, self.n_tokens = len(regressor), tokenizer.n_tokens
        at_each_place = nn.Sequential(nn.Linear(channels, width // 4), nn.GELU())
        self.hidden = nn.Sequential(at_each_place, nn.Flatten(), nn.Linear(places * width // 4, width), nn.GELU())
        self.keypoints = nn.Linear(width, 3 * self.n_keypoints)
        self.codes = nn.Linear(width, self.n_tokens * tokenizer.latent_dim)
        self.register_buffer("template", regressor @ tokenizer.template, persistent=False)
        self.register_buffer("mean", codebook.mean(0), persistent=False)
        self.register_buffer("std", codebook.std(0), persistent=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) -> canonical keypoints (B, J, 3) in metres, codes (B, N, D)."""
        x = self.hidden(features.flatten(2).transpose(1, 2))  # (B, width)
        keypoints = self.template + 0.1 * self.keypoints(x).unflatten(1, (self.n_keypoints, 3))
        return keypoints, self.mean + self.std * self.codes(x).unflatten(1, (self.n_tokens, -1))

    def code_error(self, codes: Tensor, true: Tensor) -> Tensor:
        """Mean squared error between codes (B, N, D), in variances of the codebook."""
        return ((codes - true) / self.std).square().mean()
