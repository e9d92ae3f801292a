"""Copies of a pretrained model to train, each with an attention of its own."""

from __future__ import annotations

import copy
from typing import Any

from dynattn.evals.compare.results import BASELINE

_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "attn_dropout")


def fresh(model: Any, method: str) -> Any:
    """A copy of a pretrained model with another attention, as it was before any training.

    Dropout inside attention is off, for dense attention too, so that the kept keys are all that differs; the model's
    other dropout stays as its config says.

    Args:
        model: a Transformers model.
        method: a short name, or ``sdpa``.
    """
    from dynattn.integrations.transformers import register

    config = copy.deepcopy(model.config)
    for name in _ATTENTION_DROPOUT:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config.use_cache = False  # a cache is of no use in training
    made = type(model)(config)
    made.load_state_dict(model.state_dict())
    if method != BASELINE:
        register(method)
    made.set_attn_implementation(method if method == BASELINE else f"dynattn:{method}")
    return made
