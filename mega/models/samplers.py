"""From logits to tokens: in one deterministic pass, or by unmasking a few more tokens at every step.

Step k of n, with everything hidden before the first:
    1. choose   ids = argmax(logits + tau * Gumbel) at the hidden places, visible ones keep theirs
    2. score    confidence = logit of the chosen id + tau * Gumbel at the hidden places
    3. hide     the floor(N cos(pi k / 2n)) least confident again, always fewer than before
tau anneals to zero. The rules differ in the end only: "published" hides one token even after the last step, written as
code 0 (as the paper's numbers were made); "default" leaves nothing hidden.

Source: Chang et al., MaskGIT: Masked Generative Image Transformer, CVPR 2022; annealing from the published MEGA.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mega.models.cvqmae import CVQMAE
from mega.models.vqmae import VQMAE
from mesh_vq_vae import MeshVQVAE

Rule = Literal["default", "published"]
RULES = get_args(Rule)
DECODINGS = ("argmax", "soft")
# (what for: "ids" or "confidence"; step, from 0; shape) -> standard Gumbel noise
Noise = Callable[[str, int, torch.Size], Tensor]
# (tokens, hidden) after a step, both (B, Q, N)
Watcher = Callable[[Tensor, Tensor], None]


@dataclass
class Prediction:
    """What one deterministic pass says about B people."""

    tokens: Tensor  # (B, N) int64
    logits: Tensor  # (B, N, K)
    rot6d: Tensor  # (B, 6)
    cam: Tensor  # (B, 3)


@torch.no_grad()
def predict_deterministic(model: CVQMAE, features: Tensor) -> Prediction:
    """The likeliest token at every place from the picture's features (B, C, h, w) alone, in one pass."""
    rot6d, cam = model.rotcam(features)
    logits = _all_hidden_logits(lambda *state: model(features, *state), len(features), model.n_tokens, features.device)
    return Prediction(logits.argmax(dim=-1), logits, rot6d.float(), cam.float())


@torch.no_grad()
def codes_to_decode(tokenizer: MeshVQVAE, prediction: Prediction, decode: str) -> Tensor:
    """Codes (B, N, D) for `tokenizer.decode_latents`: "argmax" the likeliest ones (published), "soft" the mean ones."""
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
    noise: Noise | None = None,
    max_rows: int = 512,
    watch: Watcher | None = None,
) -> Tensor:
    """Draw meshes for people in pictures; rotation and camera do not depend on the draw (`model.rotcam`).

    Args:
        model: in evaluation mode.
        features: (B, C, h, w) from `model.features`, computed once a picture.
        n_samples: Q, draws for each.
        steps: n; more steps, more coherent draws.
        temperature: T; at step k the noise is scaled by tau = T (1 - k/n).
        generator: source of the noise, on any device.
        rule: see the module's docstring.
        noise: takes the generator's place.
        max_rows: how many of the B * Q rows go through the model at once (memory).
        watch: is told the state after every step.

    Returns:
        tokens (B, Q, N) int64.
    """
    condition = model.embed_condition(features)  # (B, L, D)
    first = _all_hidden_logits(
        lambda *state: model.predict(condition, *state), len(features), model.n_tokens, features.device
    )

    def predict(rows: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        return model.predict(condition[rows // n_samples], tokens, hidden, only_hidden=True)

    taus = [temperature * (1 - step / steps) for step in range(1, steps + 1)]
    return _unmask(first, predict, n_samples, taus, noise or gumbel(generator), rule, max_rows, watch)


@torch.no_grad()
def sample_unconditional(
    model: VQMAE,
    n: int,
    steps: int = 20,
    temperature: float = 1.3,
    generator: torch.Generator | None = None,
    rule: Rule = "default",
    noise: Noise | None = None,
    max_rows: int = 512,
    watch: Watcher | None = None,
) -> Tensor:
    """Draw `n` random meshes: tokens (n, N) int64. Arguments as in `sample`, but tau = (1 - k/n) (T (1 - k/n))^5."""
    device = model.decoder.mask_token.device
    first = _all_hidden_logits(model, 1, model.n_tokens, device)

    def predict(rows: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        return model(tokens, hidden, only_hidden=True)

    left = [1 - step / steps for step in range(1, steps + 1)]
    taus = [share * (temperature * share) ** 5 for share in left]
    return _unmask(first, predict, n, taus, noise or gumbel(generator), rule, max_rows, watch)[0]


def gumbel(generator: torch.Generator | None = None) -> Noise:
    """Standard Gumbel noise from a generator, as the samplers ask for it."""
    device = generator.device if generator is not None else None

    def draw(_what: str, _step: int, shape: torch.Size) -> Tensor:
        return torch.empty(shape, device=device).exponential_(generator=generator).log_().neg_()

    return draw


def _all_hidden_logits(
    predict: Callable[[Tensor, Tensor], Tensor], batch: int, n_tokens: int, device: torch.device
) -> Tensor:
    """Logits (B, N, K) of the first step, where no token is known: the same for all samples of a picture."""
    tokens = torch.zeros(batch, n_tokens, dtype=torch.int64, device=device)
    return predict(tokens, torch.ones_like(tokens, dtype=torch.bool)).float()


def _unmask(
    first: Tensor,
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    n_samples: int,
    taus: list[float],
    noise: Noise,
    rule: Rule,
    max_rows: int,
    watch: Watcher | None,
) -> Tensor:
    """Run the steps from the all-hidden logits (B, N, K), with one tau a step.

    `predict` maps row numbers (R,) below B * Q and the rows' tokens and hidden (R, N) to logits (R, N, K), of which
    those of hidden places are read.
    """
    if rule not in RULES:
        raise ValueError(f"There is no rule {rule!r}: choose 'default' or 'published'.")
    logits = first[:, None].expand(-1, n_samples, -1, -1)  # (B, Q, N, K)
    tokens = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=first.device)  # (B, Q, N)
    hidden = torch.ones_like(tokens, dtype=torch.bool)
    rows = torch.arange(tokens.shape[0] * n_samples, device=first.device)

    for step, tau in enumerate(taus):
        if step > 0:
            parts = zip(*(x.split(max_rows) for x in (rows, tokens.flatten(0, 1), hidden.flatten(0, 1))), strict=True)
            logits = torch.cat([predict(*part).float() for part in parts]).unflatten(0, tokens.shape[:2])
        noisy = logits + tau * noise("ids", step, logits.shape).to(logits) if tau > 0 else logits
        tokens = torch.where(hidden, noisy.argmax(dim=-1), tokens)
        if rule == "default" and step == len(taus) - 1:
            hidden = torch.zeros_like(hidden)
        else:
            confidence = logits.gather(-1, tokens[..., None])[..., 0].where(hidden, math.inf)  # (B, Q, N)
            if tau > 0:
                confidence = confidence + tau * noise("confidence", step, confidence.shape).to(confidence)
            hidden = _least_confident(confidence, hidden, share=math.cos(math.pi / 2 * (step + 1) / len(taus)))
        tokens = tokens.masked_fill(hidden, 0)
        if watch is not None:
            watch(tokens, hidden)
    return tokens


def _least_confident(confidence: Tensor, hidden: Tensor, share: float) -> Tensor:
    """Hide (..., N) again: a share of all N, one at least, fewer than before; with the last one, its ties."""
    n_tokens = hidden.shape[-1]
    again = (hidden.sum(dim=-1, keepdim=True) - 1).clamp(max=math.floor(n_tokens * share)).clamp(min=1)  # (..., 1)
    threshold = confidence.sort(dim=-1).values.gather(-1, again - 1)
    return confidence <= threshold
