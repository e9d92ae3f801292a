"""Text embeddings by mean pooling, and how well they find a passage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dynattn.lab.models import Pretrained, context
from dynattn.lab.tasks.base import Inputs

BATCH = 8


def longest(pretrained: Pretrained, tokens: int) -> int:
    """``tokens``, or fewer where the model takes fewer."""
    return min(tokens, context(pretrained) or tokens, pretrained.processor.model_max_length)


def inputs(pretrained: Pretrained, texts: Sequence[str], tokens: int) -> Inputs:
    """Model inputs for texts, cut to ``tokens`` and padded to the longest."""
    return dict(
        pretrained.processor(list(texts), padding=True, truncation=True, max_length=tokens, return_tensors="pt")
    )


def steps(texts: int) -> int:
    """How often :func:`embed` reports progress."""
    return -(-texts // BATCH)


def pool(model: nn.Module, given: Inputs) -> Tensor:
    """Mean of the last hidden states over the tokens of each text, of length 1, in float32.

    Args:
        model: an encoder.
        given: its inputs, with an ``attention_mask``, (batch, length).

    Returns:
        (batch, hidden).
    """
    hidden = model(**given).last_hidden_state.float()
    mask = given["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # [batch, length, 1]
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@torch.inference_mode()
def embed(pretrained: Pretrained, texts: Sequence[str], tokens: int, advance: Callable[[], None]) -> np.ndarray:
    """:func:`pool` for any number of texts, a few at a time.

    Args:
        pretrained: an encoder.
        texts: any number.
        tokens: longer texts are cut.
        advance: called after each batch.

    Returns:
        (texts, hidden) float32.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike lengths together: little padding
    out: dict[int, np.ndarray] = {}
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        given = inputs(pretrained, [texts[i] for i in batch], tokens)
        pooled = pool(pretrained.model, {name: x.to(pretrained.model.device) for name, x in given.items()})
        out.update(zip(batch, pooled.cpu().numpy(), strict=True))
        advance()
    return np.stack([out[i] for i in range(len(texts))])


def guessed_rank(documents: int, cut: int = 10) -> float:
    """Mean of :func:`reciprocal_ranks` where every document is equally likely to come first."""
    return sum(1 / rank for rank in range(1, min(cut, documents) + 1)) / documents


def reciprocal_ranks(queries: np.ndarray, documents: np.ndarray, own: np.ndarray, cut: int = 10) -> np.ndarray:
    """One over the rank of each query's own document by cosine; 0 below rank ``cut``.

    Args:
        queries: (queries, hidden), of length 1.
        documents: (documents, hidden), of length 1.
        own: (queries,) index of each query's document.
        cut: the last rank that counts.

    Returns:
        (queries,) float64. Ties go against the query, so that equal embeddings score nothing.
    """
    scores = queries @ documents.T
    rank = (scores >= scores[np.arange(len(queries)), own][:, None]).sum(1)  # its own document counts as the 1
    return np.where(rank <= cut, 1.0 / rank, 0.0)
