"""Methods of the whole model and not of a head: they shorten the sequence, or have linear layers leave inputs out.

They go by name, beside an assignment of methods for heads, and may be of either kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

from dynattn.integrations.transformers.shortened import shortening
from dynattn.lab.models import Pretrained
from dynattn.sparsity import BySite, LinearSetting, find


@contextmanager
def applied(pretrained: Pretrained, name: str | None) -> Iterator[None]:
    """While active, the model works by such a method; as it is where there is none.

    Args:
        pretrained: the model.
        name: of pruning, or of a plan of linear layers that needs no thresholds.
    """
    if name is None:
        yield
        return
    plan = _plan(name)
    with shortening(pretrained.model, name) if plan is None else plan.apply(pretrained.model):
        yield


class Named(TypedDict):
    """A name as one of the two kinds; the other is None, as both are where there is no name."""

    pruning: str | None
    linears: str | None


def split(name: str | None) -> Named:
    """The name as one of a method that shortens the sequence, ``pruning``, or of a plan for ``linears``."""
    of_linears = name is not None and _plan(name) is not None
    return {"pruning": None if of_linears else name, "linears": name if of_linears else None}


def methods(name: str) -> dict[str, str]:
    """The methods of a plan by site.

    Args:
        name: of a plan for linear layers.
    """
    plan = _plan(name)
    return {} if plan is None else {site: method.name for site, method in plan.methods}


def setting(name: str) -> LinearSetting:
    """A plan as a file holds it.

    Args:
        name: of a plan for linear layers.
    """
    return LinearSetting(methods(name))


def _plan(name: str) -> BySite | None:
    found = find(name)
    return found if isinstance(found, BySite) else None
