"""How a method is put into a model: as its attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from dynattn.evals.compare.results import BASELINE
from dynattn.evals.models import Pretrained
from dynattn.methods import parse


def canonical(name: str) -> str:
    """A method's own short name, which may hold more than the one given.

    Raises:
        ValueError: no method has this name.
    """
    return parse(name).name


@contextmanager
def applied(pretrained: Pretrained, name: str) -> Iterator[str]:
    """While active, the model works with a method.

    Args:
        pretrained: the model; its attention implementation is set, and left as it is.
        name: short name of the method, or ``sdpa``.

    Yields:
        Transformers' name of the attention.
    """
    implementation = BASELINE if name == BASELINE else _registered(name)
    pretrained.model.set_attn_implementation(implementation)
    yield implementation


@cache
def _registered(name: str) -> str:
    from dynattn.integrations.transformers import register

    register(name)
    return f"dynattn:{name}"
