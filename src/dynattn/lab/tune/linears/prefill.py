"""N:M activations in the prefill phase: on the linear layers where this machine's kernels make them pay.

Whether they do is measured on the model's own layers. Which layers can spare what is seen in forwards of a few tokens.
The settings of the one family that comes of it are measured and raced like methods that shorten the sequence, see
:mod:`dynattn.lab.tune.shortest`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.tune.linears.clock import DENSE, Seconds, clock, faster
from dynattn.lab.tune.linears.harm import look
from dynattn.lab.tune.linears.spread import spread
from dynattn.lab.tune.linears.units import of_kinds, units
from dynattn.sparsity import BySite, NMActivations

LOOKED = 3
"""Texts whose beginnings show what layers can spare."""

_EACH = [NMActivations(n, m, norm=norm) for n, m in ((1, 2), (2, 4)) for norm in (False, True)]
_METHODS = {method.name: method for method in _EACH}
_CLOCKED = 512  # tokens: what a token takes is the same for more of them
_SEEN = 256  # tokens of a text by which harm is seen


@torch.inference_mode()
def costs(pretrained: Pretrained, inputs: Inputs) -> Seconds:
    """What linear layers take, dense and by each method that is faster for some of them; empty where none is.

    Args:
        pretrained: the model; it is left with PyTorch's attention.
        inputs: of a forward.
    """
    found, model = units(pretrained.model), pretrained.model
    if not found:
        return {}
    model.set_attn_implementation(BASELINE)
    contexts = {name: partial(_plan(of_kinds(found, name)).apply, model) for name in _METHODS}
    given = beginning(inputs, _CLOCKED)
    seconds = clock(model, contexts, lambda: model(**given))
    return {} if list(seconds) == [DENSE] else seconds


def family(pretrained: Pretrained, seconds: Seconds, inputs: Sequence[Inputs]) -> tuple[str, ...]:
    """Names of settings, the mildest first; none where nothing is faster.

    Args:
        pretrained: the model; it is left with PyTorch's attention.
        seconds: what :func:`costs` gave.
        inputs: of forwards that show harm.
    """
    if not seconds:
        return ()
    found, model = units(pretrained.model), pretrained.model
    model.set_attn_implementation(BASELINE)
    contexts = {
        (name, kind): partial(_plan(of_kinds(found, name, kind)).apply, model)
        for name in seconds
        if name != DENSE
        for kind in faster(seconds, name)
        if of_kinds(found, name, kind)
    }
    harm = look(model, [beginning(each, _SEEN) for each in inputs], contexts)
    return tuple(_plan(methods).name for methods in spread(found, seconds, harm))


def beginning(inputs: Inputs, tokens: int) -> dict[str, Any]:
    """The inputs of a forward with the first tokens of its texts; pictures stay whole.

    Args:
        inputs: of a forward.
        tokens: so many at the most.
    """
    cut = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
    return {
        name: value[:, :tokens] if name in cut and isinstance(value, Tensor) and value.dim() == 2 else value
        for name, value in inputs.items()
    }


def _plan(methods: Mapping[str, str]) -> BySite:
    return BySite(tuple((site, _METHODS[name]) for site, name in methods.items()))
