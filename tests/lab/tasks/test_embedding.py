"""Embeddings of texts, and the ranks that they give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks.embedding import embed, reciprocal_ranks


def _nothing() -> None: ...


def test_reciprocal_ranks_count_what_scores_higher_and_ties_against_the_query():
    documents = np.eye(4)
    queries = np.array([[1.0, 0, 0, 0], [0.5, 0.4, 0.3, 0], [0.1, 0.1, 0, 0]])
    assert reciprocal_ranks(queries, documents, np.array([0, 2, 0])).tolist() == [1.0, 1 / 3, 1 / 2]
    assert reciprocal_ranks(queries, documents, np.array([0, 2, 0]), cut=2).tolist() == [1.0, 0.0, 1 / 2]


def test_embed_averages_the_tokens_and_not_the_padding(tiny_encoder: Path):
    pretrained = load(str(tiny_encoder))
    texts = ["the moon", "seven silver coins near a quiet mill and the old house", "stone"]
    together = embed(pretrained, texts, 64, _nothing)
    apart = np.concatenate([embed(pretrained, [text], 64, _nothing) for text in texts])
    np.testing.assert_allclose(together, apart, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
