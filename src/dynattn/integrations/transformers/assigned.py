"""Gives each attention module of a model a method of its own, which the module itself holds.

Layers are told apart by their modules and not by ``layer_idx``, which vision models and speech encoders do not have,
and which a decoder's self-attention shares with its cross-attention.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.integrations.transformers import attend, paged
from dynattn.integrations.transformers.coverage import PREFIX, survey
from dynattn.integrations.transformers.packed import texts
from dynattn.methods import Method, PerLayer, parse
from dynattn.methods.registry import given

ASSIGNED = "assigned"
"""The name, behind ``dynattn:``, of the implementation of a model whose methods come from :func:`assign`."""

PHASES = ("prefill", "decode", "both")

_ATTRIBUTE = "dynattn_assigned"
_DENSE = parse("dense")
_warned: set[tuple[str, str]] = set()  # the warnings that were given for each source, since each is given once


@dataclass(frozen=True)
class Limits:
    """The calls for which a claim was proved. The first call outside of them gives a warning.

    Attributes:
        source: who makes the claim, for the warning.
        dtype: the dtype of the queries.
        low: the fewest keys of a call.
        high: the most keys of a call.
        everywhere: phases in which they hold for modules that attend densely, too, since the claim is not of attention
            alone there.
    """

    source: str
    dtype: torch.dtype
    low: int
    high: int
    everywhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assigned:
    """The data that an attention module holds.

    Attributes:
        method: what the module keeps in calls of the phase; in others it is dense.
        phase: ``prefill``, ``decode`` (one query and more keys) or ``both``.
        limits: the limits of the claim about it, or None.
        other: the method of calls of the other phase.
    """

    method: Method
    phase: str
    limits: Limits | None
    other: Method = _DENSE

    def in_phase(self, phase: str) -> Method:
        """What the module keeps in ``prefill`` or ``decode``."""
        return self.method if self.phase in ("both", phase) else self.other


def assign(model: Any, methods: Mapping[str, Method | str], phase: str = "both") -> None:
    """Set a method for each attention module of a Transformers model, and have the model attend by them.

        names = attention_modules(model)
        assign(model, {names[0]: "nm-1-2", names[1]: "window-64-s4"})      # the others dense

    ``model.set_attn_implementation("sdpa")`` undoes it.

    Args:
        model: a Transformers model.
        methods: methods or their names by modules' names; modules that are not named are dense.
        phase: the phase in which the methods are used; the other one is dense.

    Raises:
        ValueError: a name is not that of an attention module that takes part, or not a method's.
    """
    from dynattn.integrations.transformers import register

    given = checked(model, methods, phase)
    register(ASSIGNED)
    put(model, given, phase, None)
    model.set_attn_implementation(PREFIX + ASSIGNED)


def attention_modules(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's modules that ask Transformers' attention interface, in the model's order.

    Args:
        model: any module.

    Returns:
        Names, as ``model.get_submodule`` takes them.
    """
    return tuple(part.name for kind, part in survey(model.named_modules()) if kind == "asks")


def checked(model: Any, methods: Mapping[str, Method | str], phase: str) -> dict[str, Method]:
    """A method for each attention module of the model, dense where none is given; see :func:`assign`."""
    names = attention_modules(model)
    unknown = [name for name in methods if name not in names]
    if unknown or not names:
        raise ValueError(
            f"assign: methods must be given by attention modules of {type(model).__name__} that take part: got "
            f"{unknown or 'a model that has none'}; attention_modules(model) lists them: {', '.join(names[:3])}…"
        )
    if phase not in PHASES:
        raise ValueError(f"assign: phase must be one of {', '.join(PHASES)}: got {phase!r}")
    found = {name: given(method, "assign") for name, method in methods.items()}
    if any(isinstance(method, PerLayer) for method in found.values()):
        raise ValueError("assign: a module's method must not be PerLayer; give each module its own")
    return {name: found.get(name, _DENSE) for name in names}


def put(
    model: Any, methods: Mapping[str, Method], phase: str, limits: Limits | None, other: Method = _DENSE
) -> None:  # fmt: skip
    """Have the modules hold their methods. This does not change yet how the model attends."""
    if limits is not None:
        _warned.difference_update({said for said in _warned if said[0] == limits.source})
    for name, method in methods.items():
        setattr(model.get_submodule(name), _ATTRIBUTE, Assigned(method, phase, limits, other))


def take_back(model: nn.Module) -> None:
    """Take the methods from modules that attend in another way now."""
    from dynattn.pruning.replaced import StandInConfig  # imports torch._dynamo, which takes a second

    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, StandInConfig):  # while the sequence is shortened
            config = config.original
        if hasattr(module, _ATTRIBUTE) and not is_assigned(getattr(config, "_attn_implementation", None)):
            delattr(module, _ATTRIBUTE)


def is_assigned(implementation: Any) -> bool:
    """Whether this is the name of an implementation whose modules hold their methods."""
    if not isinstance(implementation, str) or not implementation.startswith(PREFIX):
        return False
    return implementation == PREFIX + ASSIGNED or implementation.endswith(".json")


def forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The function that Transformers calls in each attention layer; returns (batch, q_len, heads, value_dim)."""
    given: Assigned | None = getattr(module, _ATTRIBUTE, None)
    if given is None:
        raise RuntimeError(
            f"dynattn: {type(module).__name__} holds no method, since its model is not of the class that the tuned "
            "file is for, or a module came later: call dynattn.integrations.transformers.load(model, path), or assign"
        )
    prefill, decode = given.in_phase("prefill"), given.in_phase("decode")
    if kwargs.get("cache") is not None:  # continuous batching: requests of both phases in one call
        if given.limits is not None:
            of_phases = zip(("prefill", "decode"), (prefill, decode), paged.phases(module, kwargs), strict=True)
            for phase, method, lengths in of_phases:
                for kv_len in lengths.tolist():
                    _check(given.limits, method, phase, query.dtype, kv_len)
        options = {"method": prefill, "decoding": decode, **kwargs}
        return attend.forward(module, query, key, value, attention_mask, *args, **options)
    phase = "decode" if query.shape[2] == 1 and key.shape[2] > 1 else "prefill"
    method = given.in_phase(phase)
    if given.limits is not None:
        spans = texts(kwargs, attention_mask, query.shape[0], query.shape[2], key.shape[2])
        for kv_len in [key.shape[2]] if spans is None else [span.keys.stop - span.keys.start for span in spans]:
            _check(given.limits, method, phase, query.dtype, kv_len)
    return attend.forward(module, query, key, value, attention_mask, *args, method=method, **kwargs)


def _check(limits: Limits, method: Method, phase: str, dtype: torch.dtype, kv_len: int) -> None:
    if method.keeps_everything and phase not in limits.everywhere:
        return
    if dtype != limits.dtype:
        _warn(limits.source, f"in {limits.dtype}", f"in {dtype}")
    if kv_len < limits.low or kv_len > limits.high:
        where = "below" if kv_len < limits.low else "above"
        _warn(limits.source, f"for {limits.low} to {limits.high} keys", f"with a number of keys {where} that")


def _warn(source: str, proved: str, got: str) -> None:
    """Warn once. In compiled code this runs while a graph is made, and calls on each side of a limit get their own
    graph."""
    if (source, proved) not in _warned:
        _warned.add((source, proved))
        warnings.warn(
            f"dynattn: {source} was proved {proved}, and the model is called {got}: the loss that it states is not "
            "proved there; run `dynattn tune` for it",
            stacklevel=2,
        )


# This is all that torch.compiler.assume_constant_result does, except for importing torch._dynamo, which takes a second.
_warn.__dict__["_dynamo_marked_constant"] = True
