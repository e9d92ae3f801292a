"""Calibrates methods that need thresholds, on texts by which no task judges a model unless it takes nearly all."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn

from dynattn.lab.calibration import short_articles
from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs
from dynattn.sparsity import ActivationPlan, Calibrated, calibrate_thresholds

TEXTS = 16
"""So many of the shortest articles."""

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
    return short_articles(pretrained, TEXTS)


@torch.inference_mode()
def fitted(pretrained: Pretrained, method: ActivationPlan) -> ActivationPlan | Calibrated:
    """A method that can be applied to a model: itself where it needs no thresholds, else with those of this model.

    Args:
        pretrained: the model; where it is looked at, its attention is set to dense.
        method: the method.

    Raises:
        As :func:`inputs`, and :func:`dynattn.sparsity.calibrate_thresholds`.
    """
    if not method.needs_thresholds:
        return method
    known = _found.setdefault(pretrained.model, {})
    if method.name not in known:
        given = inputs(pretrained)
        pretrained.model.set_attn_implementation(BASELINE)
        known[method.name] = calibrate_thresholds(method, pretrained.model, given)
    return known[method.name]
