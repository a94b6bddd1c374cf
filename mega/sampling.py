"""From logits to tokens: all at once (deterministic), or a few more at every step (stochastic).

Step k of n, where H tokens are masked before the first step (all N, unless some are given):
    1. choose   ids = argmax(logits + tau * Gumbel) at the masked positions; visible tokens stay
    2. score    confidence = logit of the chosen id + tau * Gumbel, at the masked positions
    3. mask     the floor(H cos(pi k / 2n)) least confident ones again, always fewer than before
tau anneals to zero. The rules differ at the end only: "default" leaves no token masked; "published" masks one token
even after the last step and writes it as code 0 (the paper's numbers were made this way).

Source: Chang et al., MaskGIT: Masked Generative Image Transformer, CVPR 2022; annealing from the published MEGA.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mega.geometry import rot6d_to_matrix
from mega.model import CVQMAE, VQMAE
from mesh_vq_vae import MeshVQVAE

Rule = Literal["default", "published"]
RULES = get_args(Rule)
DECODINGS = ("argmax", "soft")
# (purpose: "ids" or "confidence"; step, from 0; shape) -> standard Gumbel noise
Noise = Callable[[str, int, torch.Size], Tensor]
# Called after each step with tokens and masked, both (B, Q, N)
Watcher = Callable[[Tensor, Tensor], None]


@dataclass
class Prediction:
    """The deterministic prediction for B people."""

    tokens: Tensor  # (B, N) int64, the likeliest ones
    logits: Tensor  # (B, N, K)
    rotation: Tensor  # (B, 3, 3), canonical -> camera
    cam: Tensor  # (B, 3), weak perspective (s, tx, ty) on a crop in [-1, 1]
    features: Tensor  # (B, C, h, w) of the image, for drawing samples
    canonical: Tensor | None = None  # (B, V, 3) m; None until it is decoded (`predict_mesh`)

    @property
    def mesh(self) -> Tensor:
        """(B, V, 3) m in the camera's orientation, centred as the canonical mesh is."""
        return self.canonical @ self.rotation.mT


@torch.no_grad()
def predict_deterministic(model: CVQMAE, features: Tensor) -> Prediction:
    """The likeliest token at every position given the features (B, C, h, w) alone, in one pass. Nothing is decoded."""
    rot6d, cam = model.rotcam(features)
    state = _all_masked(len(features), model.n_tokens, features.device)
    logits = model.predict(model.embed_condition(features), *state).float()
    return Prediction(logits.argmax(dim=-1), logits, rot6d_to_matrix(rot6d.float()), cam.float(), features)


@torch.no_grad()
def select_codes(tokenizer: MeshVQVAE, prediction: Prediction, decode: str) -> Tensor:
    """Codes (B, N, D) for the tokenizer's decoder: "argmax" the likeliest (published), "soft" the expected ones."""
    if decode not in DECODINGS:
        raise ValueError(f"decode={decode} is not known; choose from {', '.join(DECODINGS)}.")
    if decode == "argmax":
        return tokenizer.vq_vae.lookup(prediction.tokens)
    return tokenizer.expected_codes(prediction.logits.float())


@torch.no_grad()
def sample(
    model: CVQMAE,
    features: Tensor,
    n_samples: int = 1,
    steps: int = 5,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    rule: Rule = "default",
    **options,
) -> Tensor:
    """Draw meshes for the people in images. Rotation and camera are not drawn (`model.rotcam`).

    Args:
        model: in eval mode.
        features: (B, C, h, w) from `model.features`.
        n_samples: Q per image.
        steps: n; samples are more coherent with more steps.
        temperature: T; at step k the noise is scaled by tau = T (1 - k/n).
        generator: source of the noise, on any device.
        rule: "default" or "published", see above.
        options: `noise` in place of the generator's; `max_batch`, how many of the B * Q samples go through the model at
            once (512: memory); `watch`, called with the state after every step.

    Returns:
        tokens (B, Q, N) int64.
    """
    condition = model.embed_condition(features)  # (B, L, D)

    def predict(image: Tensor, tokens: Tensor, masked: Tensor) -> Tensor:
        return model.predict(condition[image], tokens, masked, only_masked=True)

    taus = [temperature * (1 - step / steps) for step in range(1, steps + 1)]
    state = _all_masked(len(features), model.n_tokens, features.device)
    return _unmask(predict, *state, n_samples, taus, generator, rule, **options)


@torch.no_grad()
def sample_unconditional(
    model: VQMAE,
    n: int,
    steps: int = 20,
    temperature: float = 1.3,
    generator: torch.Generator | None = None,
    rule: Rule = "default",
    given: tuple[Tensor, Tensor] | None = None,
    **options,
) -> Tensor:
    """Draw `n` random meshes, or `n` completions of one: tokens (n, N) int64.

    Arguments as in `sample`, except for tau = (1 - k/n) (T (1 - k/n))^5 and

        given: tokens (N,) of a body and masked (N,) bool: the positions to draw anew; the other tokens stay.

    Raises ValueError when no token of `given` is masked.
    """

    def predict(_: Tensor, tokens: Tensor, masked: Tensor) -> Tensor:
        return model(tokens, masked, only_masked=True)

    device = model.decoder.mask_token.device
    state = _all_masked(1, model.n_tokens, device) if given is None else [x[None].to(device) for x in given]
    left = [1 - step / steps for step in range(1, steps + 1)]
    taus = [share * (temperature * share) ** 5 for share in left]
    return _unmask(predict, *state, n, taus, generator, rule, **options)[0]


def gumbel(generator: torch.Generator | None = None) -> Noise:
    """Standard Gumbel noise from a generator."""
    device = generator.device if generator is not None else None

    def draw(_purpose: str, _step: int, shape: torch.Size) -> Tensor:
        return torch.empty(shape, device=device).exponential_(generator=generator).log_().neg_()

    return draw


def _all_masked(batch: int, n_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and masked (B, N) where no token is known."""
    tokens = torch.zeros(batch, n_tokens, dtype=torch.int64, device=device)
    return tokens, torch.ones_like(tokens, dtype=torch.bool)


def _unmask(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    tokens: Tensor,
    masked: Tensor,
    n_samples: int,
    taus: list[float],
    generator: torch.Generator | None,
    rule: Rule,
    noise: Noise | None = None,
    max_batch: int = 512,
    watch: Watcher | None = None,
) -> Tensor:
    """Run the steps, one for each tau, from tokens and masked (B, N) with the same number masked in each row.

    `predict` maps the numbers (M,) of images in the batch, tokens and masked (M, N) to logits (M, N, K), of which the
    masked ones are read. All samples of an image share the logits of the first step.
    """
    if rule not in RULES:
        raise ValueError(f"There is no rule {rule!r}: choose 'default' or 'published'.")
    n_drawn = int(masked[0].sum())
    if n_drawn == 0:
        raise ValueError("There is nothing to draw: no token is masked.")
    noise = noise or gumbel(generator)
    images = torch.arange(len(tokens), device=tokens.device)
    first = predict(images, tokens, masked).float()
    images = images.repeat_interleave(n_samples)  # (B * Q,)
    logits, tokens, masked = (x[:, None].expand(-1, n_samples, *x.shape[1:]) for x in (first, tokens, masked))

    for step, tau in enumerate(taus):
        if step > 0:
            state = (images, tokens.flatten(0, 1), masked.flatten(0, 1))
            parts = zip(*(x.split(max_batch) for x in state), strict=True)
            logits = torch.cat([predict(*part).float() for part in parts]).unflatten(0, tokens.shape[:2])
        noisy = logits + tau * noise("ids", step, logits.shape).to(logits) if tau > 0 else logits
        tokens = torch.where(masked, noisy.argmax(dim=-1), tokens)  # (B, Q, N)
        if rule == "default" and step == len(taus) - 1:
            masked = torch.zeros_like(masked)
        else:
            confidence = logits.gather(-1, tokens[..., None])[..., 0].where(masked, math.inf)  # (B, Q, N)
            if tau > 0:
                confidence = confidence + tau * noise("confidence", step, confidence.shape).to(confidence)
            share = math.cos(math.pi / 2 * (step + 1) / len(taus))
            masked = _least_confident(confidence, masked, most=math.floor(n_drawn * share))
        tokens = tokens.masked_fill(masked, 0)
        if watch is not None:
            watch(tokens, masked)
    return tokens


def _least_confident(confidence: Tensor, masked: Tensor, most: int) -> Tensor:
    """The next mask (..., N): the `most` least confident tokens and ties of the last of them; at least one token, and
    without ties fewer than are masked now."""
    again = (masked.sum(dim=-1, keepdim=True) - 1).clamp(max=most).clamp(min=1)  # (..., 1)
    threshold = confidence.sort(dim=-1).values.gather(-1, again - 1)
    return confidence <= threshold
