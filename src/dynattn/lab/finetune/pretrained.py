"""Copies of a pretrained model to train, each with an attention of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from dynattn.lab.figures import BASELINE

_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "attn_dropout")


def fresh(model: Any, method: str) -> Any:
    """A copy of a pretrained model with another attention, as it was before any training.

    Dropout inside attention is off, for dense attention too, so that the kept keys are all that differs; the model's
    other dropout stays as its config says.

    Args:
        model: a Transformers model.
        method: a short name, or ``sdpa``.
    """
    made = type(model)(_config(model))
    made.load_state_dict(model.state_dict())
    return _attend(made, method)


def with_head(model: Any, method: str, classes: Sequence[str]) -> Any:
    """:func:`fresh`, with dropout and a linear layer on top that gives each token a class, its weights drawn now.

    Args:
        model: a Transformers encoder.
        method: a short name, or ``sdpa``.
        classes: their names, which a saved model carries.

    Raises:
        ValueError: Transformers has no such head for the model.
    """
    from transformers import AutoModelForTokenClassification

    config = _config(model)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: i for i, name in enumerate(classes)}
    made: Any = AutoModelForTokenClassification.from_config(config)
    missing = made.base_model.load_state_dict(model.state_dict(), strict=False).missing_keys  # it needs no pooler
    if missing:
        raise ValueError(
            f"with_head: the model must have all weights of {type(made.base_model).__name__}: {type(model).__name__} "
            f"lacks {', '.join(missing[:3])}; load the encoder alone"
        )
    return _attend(made, method)


def _config(model: Any) -> Any:
    config = copy.deepcopy(model.config)
    for name in _ATTENTION_DROPOUT:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config.use_cache = False  # a cache is of no use in training
    return config


def _attend(model: Any, method: str) -> Any:
    from dynattn.integrations.transformers import register

    if method != BASELINE:
        register(method)
    model.set_attn_implementation(method if method == BASELINE else f"dynattn:{method}")
    return model
