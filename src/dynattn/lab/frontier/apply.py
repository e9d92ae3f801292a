"""Puts a method into a model, either as its attention or as a method that shortens the sequence across its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from dynattn import pruning
from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.methods import parse

CACHE = "cache-"
"""The names of ways to decode that forget tokens begin with this."""


def canonical(name: str) -> str:
    """A method's own short name, which may hold more than the one given.

    Args:
        name: the name of a method of :mod:`dynattn.methods`, of :mod:`dynattn.pruning`, or of a way to decode.

    Raises:
        ValueError: no method has this name, or the method refuses what the name says.
    """
    if name.startswith(CACHE):
        from dynattn.lab.decode.ways import find

        return find(name).name
    shortening = pruning.find(name)
    return parse(name).name if shortening is None else shortening.name


@contextmanager
def applied(pretrained: Pretrained, name: str) -> Iterator[str]:
    """While active, the model works with a method.

    Args:
        pretrained: the model; its attention implementation is set, and left as it is.
        name: short name of the method, or ``sdpa``.

    Yields:
        Transformers' name of the attention.
    """
    shortening = None if name == BASELINE else pruning.find(name)
    implementation = BASELINE if name == BASELINE or shortening else _registered(name)
    pretrained.model.set_attn_implementation(implementation)
    if shortening is None:
        yield implementation
        return
    # The tasks of encoders average over the tokens, so that pruned ones must be zero.
    with shortening.apply(pretrained.model, zero_pruned=pretrained.kind == "encoder"):
        yield implementation


@cache
def _registered(name: str) -> str:
    from dynattn.integrations.transformers import register

    register(name)
    return f"dynattn:{name}"
