"""Calibrates methods that need thresholds, on texts by which no task judges a model unless it takes nearly all."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn

from dynattn.lab.models import Pretrained
from dynattn.lab.tasks import embedding
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.tasks.texts import wikipedia
from dynattn.sparsity import ActivationPlan, Calibrated, calibrate_thresholds

TEXTS, TOKENS = 16, 256
"""So many articles, the shortest ones, since tasks take the longest first; and so many tokens of each."""

_found: WeakKeyDictionary[nn.Module, dict[str, Calibrated]] = WeakKeyDictionary()


def inputs(pretrained: Pretrained) -> list[Inputs]:
    """What is calibrated on.

    Args:
        pretrained: an encoder or decoder of texts.

    Raises:
        DataMissingError: the articles are not on this machine.
        ValueError: the model reads no texts.
    """
    if pretrained.kind not in ("encoder", "decoder"):
        raise ValueError(
            f"thresholds: the model must read texts: {pretrained.name} is of kind {pretrained.kind}; take a method "
            "without thresholds, such as nmact-8-16-norm or wina-0.5"
        )
    tokens = embedding.longest(pretrained, TOKENS)
    beside = {"use_cache": False} if pretrained.kind == "decoder" else {}
    return [
        {**embedding.inputs(pretrained, [text.body[: TOKENS * 20]], tokens), **beside} for text in wikipedia()[-TEXTS:]
    ]


@torch.inference_mode()
def fitted(pretrained: Pretrained, method: ActivationPlan) -> ActivationPlan | Calibrated:
    """A method that can be applied to a model: itself where it needs no thresholds, else with those of this model.

    Args:
        pretrained: the model.
        method: the method.

    Raises:
        As :func:`inputs`, and :func:`dynattn.sparsity.calibrate_thresholds`.
    """
    if not method.needs_thresholds:
        return method
    known = _found.setdefault(pretrained.model, {})
    if method.name not in known:
        known[method.name] = calibrate_thresholds(method, pretrained.model, inputs(pretrained))
    return known[method.name]
