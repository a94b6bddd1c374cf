"""Predictions of an image model for crops: one mesh a person, averaged over several views of the crop if so wished, or
many drawn at random.

    predicted = predict(subject, images, decode="soft", average="flip")
    tokens, score = draw(subject, predicted.features, 25, steps=5, temperature=1.0, rule="default", generator=generator)
    for canonical in sampled_canonical(subject, tokens): ...
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mega.evaluation.subject import Subject
from mega.models import Predicted, predict_deterministic, predict_mesh, sample


def predict(subject: Subject, images: Tensor, decode: str, average: str = "none") -> Predicted:
    """The deterministic prediction for crops (B, 3, S, S), uint8 or float in [0, 255]; see `mega.models.predict_mesh`.

    Raises:
        ValueError: if `decode` or `average` is not known, or the mesh cannot be mirrored.
    """
    return predict_mesh(subject.model, subject.tokenizer, subject.normalise(images), decode, average)


@torch.no_grad()
def draw(
    subject: Subject,
    features: Tensor,
    n: int,
    steps: int,
    temperature: float,
    rule: str,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Tokens drawn at random for crops, and how likely the model finds them.

    Args:
        features: (B, C, h, w) of the crops, such as `Predicted.features`.
        n: Q, samples for each.
        steps, temperature, rule, generator: see `mega.models.sample`.

    Returns:
        tokens (B, Q, N) int64.
        score (B, Q): the sum over the tokens of their log-probabilities given the picture alone; higher is likelier.
    """
    tokens = sample(subject.model, features, n, steps, temperature, generator, rule)
    # The first pass knows the picture alone. Asked about half of a sample given the other half, the model finds those
    # samples likely that agree with themselves, which fit the picture worse.
    log_probabilities = predict_deterministic(subject.model, features).logits.log_softmax(-1)  # (B, N, K)
    return tokens, log_probabilities.gather(-1, tokens.mT).sum(1)


@torch.no_grad()
def sampled_canonical(subject: Subject, tokens: Tensor) -> Iterator[Tensor]:
    """Canonical meshes (B, V, 3) of tokens (B, Q, N), one sample of everybody at a time."""
    for drawn in tokens.unbind(1):
        yield subject.tokenizer.decode(drawn)
