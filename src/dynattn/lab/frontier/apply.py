"""Puts a method into a model: as its attention, as a method that shortens the sequence across its layers, as weights
that are 0, or as inputs of linear layers that are left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

from dynattn import pruning, sparsity
from dynattn.lab.calibration import thinned_out
from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.thresholds import fitted
from dynattn.methods import parse

CACHE = "cache-"
"""The names of ways to decode that forget tokens begin with this."""


def canonical(name: str) -> str:
    """A method's own short name, which may hold more than the one given.

    Args:
        name: the name of a method of :mod:`dynattn.methods`, of :mod:`dynattn.pruning`, of :mod:`dynattn.sparsity`, or
            of a way to decode.

    Raises:
        ValueError: no method has this name, or the method refuses what the name says.
    """
    if name.startswith(CACHE):
        from dynattn.lab.decode.ways import find

        return find(name).name
    found = pruning.find(name) or sparsity.find(name)
    return parse(name).name if found is None else found.name


@contextmanager
def applied(pretrained: Pretrained, name: str) -> Iterator[str]:
    """While active, the model works with a method.

    Args:
        pretrained: the model; its attention implementation is set, and left as it is.
        name: short name of the method, or ``sdpa``.

    Yields:
        Transformers' name of the attention.
    """
    around = _around(pretrained, name)
    implementation = BASELINE if name == BASELINE or around is not None else _registered(name)
    pretrained.model.set_attn_implementation(implementation)
    with around or nullcontext():
        yield implementation


def _around(pretrained: Pretrained, name: str) -> AbstractContextManager[object] | None:
    """The context of a method that goes around the model; None for one that is its attention."""
    if name == BASELINE:
        return None
    if (shortening := pruning.find(name)) is not None:
        # The tasks of encoders average over the tokens, so that pruned ones must be zero.
        return shortening.apply(pretrained.model, zero_pruned=pretrained.kind == "encoder")
    of_linears = sparsity.find(name)
    if isinstance(of_linears, sparsity.ActivationPlan):
        return fitted(pretrained, of_linears).apply(pretrained.model)
    return thinned_out(pretrained, of_linears) if isinstance(of_linears, sparsity.WeightSparsity) else None


@cache
def _registered(name: str) -> str:
    from dynattn.integrations.transformers import register

    register(name)
    return f"dynattn:{name}"
