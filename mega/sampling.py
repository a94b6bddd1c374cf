"""From logits to tokens: in one deterministic pass, or by unmasking a few more tokens at every step.

Step k of n, with H tokens hidden before the first (all N, unless some are given):
    1. choose   ids = argmax(logits + tau * Gumbel) at the hidden places, visible ones keep theirs
    2. score    confidence = logit of the chosen id + tau * Gumbel at the hidden places
    3. hide     the floor(H cos(pi k / 2n)) least confident again, always fewer than before
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

from mega.model import CVQMAE, VQMAE
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
    logits = model(features, *_all_hidden(len(features), model.n_tokens, features.device)).float()
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
    state = _all_hidden(len(features), model.n_tokens, features.device)
    first = model.predict(condition, *state).float()

    def predict(rows: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        return model.predict(condition[rows // n_samples], tokens, hidden, only_hidden=True)

    taus = [temperature * (1 - step / steps) for step in range(1, steps + 1)]
    return _unmask(first, *state, predict, n_samples, taus, noise or gumbel(generator), rule, max_rows, watch)


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
    given: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Draw `n` random meshes, or `n` completions of one: tokens (n, N) int64.

    Arguments as in `sample`, but tau = (1 - k/n) (T (1 - k/n))^5.

    Args:
        given: tokens (N,) of a body and hidden (N,) bool, its places to draw anew; the others keep their tokens.

    Raises ValueError when no place of `given` is hidden.
    """
    device = model.decoder.mask_token.device
    state = _all_hidden(1, model.n_tokens, device) if given is None else [x[None].to(device) for x in given]
    first = model(*state).float()

    def predict(rows: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        return model(tokens, hidden, only_hidden=True)

    left = [1 - step / steps for step in range(1, steps + 1)]
    taus = [share * (temperature * share) ** 5 for share in left]
    return _unmask(first, *state, predict, n, taus, noise or gumbel(generator), rule, max_rows, watch)[0]


def gumbel(generator: torch.Generator | None = None) -> Noise:
    """Standard Gumbel noise from a generator, as the samplers ask for it."""
    device = generator.device if generator is not None else None

    def draw(_what: str, _step: int, shape: torch.Size) -> Tensor:
        return torch.empty(shape, device=device).exponential_(generator=generator).log_().neg_()

    return draw


def _all_hidden(batch: int, n_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and hidden (B, N) where no token is known."""
    tokens = torch.zeros(batch, n_tokens, dtype=torch.int64, device=device)
    return tokens, torch.ones_like(tokens, dtype=torch.bool)


def _unmask(
    first: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    n_samples: int,
    taus: list[float],
    noise: Noise,
    rule: Rule,
    max_rows: int,
    watch: Watcher | None,
) -> Tensor:
    """Run the steps from tokens and hidden (B, N) and the logits (B, N, K) to them, with one tau a step.

    All samples of a picture start alike, so `first` is computed once for them. Every row hides equally many.
    `predict` maps row numbers (R,) below B * Q and the rows' tokens and hidden (R, N) to logits (R, N, K), of which
    those of hidden places are read.
    """
    if rule not in RULES:
        raise ValueError(f"There is no rule {rule!r}: choose 'default' or 'published'.")
    n_drawn = int(hidden[0].sum())
    if n_drawn == 0:
        raise ValueError("There is nothing to draw: no token is hidden.")
    logits, tokens, hidden = (x[:, None].expand(-1, n_samples, *x.shape[1:]) for x in (first, tokens, hidden))
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
            share = math.cos(math.pi / 2 * (step + 1) / len(taus))
            hidden = _least_confident(confidence, hidden, most=math.floor(n_drawn * share))
        tokens = tokens.masked_fill(hidden, 0)
        if watch is not None:
            watch(tokens, hidden)
    return tokens


def _least_confident(confidence: Tensor, hidden: Tensor, most: int) -> Tensor:
    """Hide (..., N) again: `most` of them, one at least, fewer than before; with the last one, its ties."""
    again = (hidden.sum(dim=-1, keepdim=True) - 1).clamp(max=most).clamp(min=1)  # (..., 1)
    threshold = confidence.sort(dim=-1).values.gather(-1, again - 1)
    return confidence <= threshold
