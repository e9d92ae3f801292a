"""How long linear layers take, dense and by each method, as the model itself calls them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import nn

from dynattn.sparsity.sites import places

DENSE = "dense"
MLP = "mlp"
"""Stands for a whole MLP with a gate among the kinds of linear layers, for methods that choose its neurons."""

FASTER = 0.95
"""Of a dense unit's seconds, what a method may take at the most to be a candidate."""

Seconds = dict[str, dict[str, float]]
"""By method, ``dense`` among them, and by kind: seconds of a unit in one run, the mean over layers."""

_ROUNDS, _RUNS = 2, 2


def clock(
    model: nn.Module, contexts: Mapping[str, Callable[[], AbstractContextManager[Any]]], run: Callable[[], None]
) -> Seconds:
    """Time all linear layers of a model, with each method in all of them.

    A method that is faster nowhere is not looked at a second time. Of several runs the fastest counts.

    Args:
        model: of Transformers, whose layers can be named.
        contexts: by name, what has the model's linear layers work by a method.
        run: calls the model.

    Returns:
        The dense layers' seconds, and those of the methods that are faster for some kind.
    """
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    left = {DENSE: nullcontext, **contexts}
    for _ in range(_ROUNDS):
        for name, context in left.items():
            with context():
                for _ in range(_RUNS):
                    found[name].append(_once(model, run))
        least = {name: _least(found[name]) for name in left}
        left = {name: context for name, context in left.items() if name == DENSE or faster(least, name)}
        if len(left) == 1:
            break
    return {name: _least(found[name]) for name in left}


def faster(seconds: Seconds, name: str) -> list[str]:
    """The kinds for which a method is faster than the dense layer."""
    return [kind for kind, its in seconds[name].items() if its < FASTER * seconds[DENSE][kind]]


def _least(several: list[dict[str, float]]) -> dict[str, float]:
    return {kind: min(each[kind] for each in several) for kind in several[0]}


def _once(model: nn.Module, run: Callable[[], None]) -> dict[str, float]:
    with _watched(model) as seconds:
        run()
    return {kind: sum(its) / len(its) for kind, its in seconds.items()}


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, list[float]]]:
    """While active, the seconds of each unit by kind, one entry a layer."""
    kinds: dict[nn.Module, tuple[int, str]] = {}
    for place in places(model):
        kinds[place.module] = place.read
        if place.gated is not None:
            kinds[place.gated.mlp] = place.layer, MLP
    spent: dict[tuple[int, str], float] = defaultdict(float)
    begun: dict[nn.Module, float] = {}
    found: dict[str, list[float]] = defaultdict(list)

    def begin(module: nn.Module, _: Any) -> None:
        begun[module] = time.perf_counter()

    def end(module: nn.Module, *_: Any) -> None:
        spent[kinds[module]] += time.perf_counter() - begun[module]

    with ExitStack() as undo:
        for module in kinds:
            undo.callback(module.register_forward_pre_hook(begin).remove)
            undo.callback(module.register_forward_hook(end).remove)
        yield found
    for (_, kind), seconds in spent.items():
        found[kind].append(seconds)
