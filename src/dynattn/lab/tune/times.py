"""How long each candidate takes, by the real kernels on the model's own queries, keys and values."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dynattn.functional import attention
from dynattn.integrations.transformers import Call, observing
from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.timing import LEAST_ROUNDS, interleaved
from dynattn.lab.tune.candidates import DENSE
from dynattn.lab.tune.layers import OWN, named
from dynattn.methods import PerHead, parse

_OF_EACH_SHAPE = 3
"""Modules of a shape whose calls are timed: methods that follow the data take longer in some than in others."""


_MOST_ROUNDS = 9


class Shape(NamedTuple):
    """What calls have to share to take equally long."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    value_dim: int
    causal: bool
    masked: bool


class Costs(NamedTuple):
    """Seconds of attention.

    Attributes:
        shapes: by the module's name, the index of the shape of its calls.
        seconds: for each shape, the seconds of a call of one module, by the method's name, and of PyTorch's own
            attention by :data:`~dynattn.lab.figures.BASELINE`.
        split: for each shape, how many seconds longer a call takes for each further method among its heads.
        heads: for each shape, the number of query heads.
    """

    shapes: dict[str, int]
    seconds: list[dict[str, float]]
    split: list[float]
    heads: list[int]


@torch.inference_mode()
def clock(
    pretrained: Pretrained, inputs: Inputs, names: Sequence[str], seconds: float, advance: Callable[[], None]
) -> Costs:
    """Time PyTorch's attention, dense attention and every candidate on a few modules of each shape.

    Args:
        pretrained: the model; it is left with this project's dense attention.
        inputs: the inputs of a forward.
        names: the names of the candidates.
        seconds: about how long to go on; three rounds are taken at least.
        advance: called for each shape.

    Returns:
        The medians.
    """
    calls = _calls(pretrained, inputs)
    kinds = list(dict.fromkeys(_shape(call) for call in calls.values()))
    found, splits = [], []
    for kind in kinds:
        alike = [call for call in calls.values() if _shape(call) == kind]
        chosen = [alike[i * (len(alike) - 1) // max(1, _OF_EACH_SHAPE - 1)] for i in range(_OF_EACH_SHAPE)]
        of_kind, split = _clocked(list({id(call): call for call in chosen}.values()), names, seconds / len(kinds))
        found.append(of_kind)
        splits.append(split)
        advance()
    shapes = {module: kinds.index(_shape(call)) for module, call in calls.items()}
    return Costs(shapes, found, splits, [kind.query[1] for kind in kinds])


def _calls(pretrained: Pretrained, inputs: Inputs) -> dict[str, Call]:
    """The first call of each module."""
    known = named(pretrained)
    calls: dict[str, Call] = {}
    pretrained.model.set_attn_implementation(OWN)
    with observing(lambda call: calls.setdefault(known[call.module], call) and None):
        pretrained.model(**inputs)
    return calls


def _shape(call: Call) -> Shape:
    return Shape(
        tuple(call.query.shape), tuple(call.key.shape), call.value.shape[-1], call.causal, call.attn_mask is not None
    )


def _clocked(calls: Sequence[Call], names: Sequence[str], seconds: float) -> tuple[dict[str, float], float]:
    """Seconds of one call by each method, and what a second method among the heads costs."""
    heads = calls[0].query.shape[1]
    every = list(dict.fromkeys([DENSE, *names]))
    functions = {BASELINE: _sdpa(calls), **{name: partial(_run, calls, name) for name in every}}
    mixture = _mixture(heads, names) if heads > 1 else None
    if mixture is not None:
        functions[mixture] = partial(_run, calls, mixture)
    functions = {name: function for name, function in functions.items() if _runs(function)}
    start = time.perf_counter()
    for function in functions.values():
        function()
    rounds = int(seconds / (time.perf_counter() - start))
    timings = interleaved(functions, rounds=min(max(rounds, LEAST_ROUNDS), _MOST_ROUNDS), min_sample=None)
    medians = {name: statistics.median(timing.samples) / len(calls) for name, timing in timings.items()}
    if mixture not in medians:
        return medians, 0.0
    parts = parse(mixture).parts  # pyright: ignore[reportAttributeAccessIssue]
    expected = sum(medians[part.name] for part in parts) / heads
    return medians, max(0.0, medians.pop(mixture) - expected)


def _mixture(heads: int, names: Sequence[str]) -> str | None:
    """Half of the heads dense and half by the first candidate."""
    first = parse(names[0]) if names else None
    if first is None:
        return None
    half = heads // 2
    return PerHead((parse("dense"),) * half + (first,) * (heads - half)).name


def _run(calls: Sequence[Call], name: str) -> None:
    method = parse(name)
    for call in calls:
        attention(
            call.query, call.key, call.value, method, attn_mask=call.attn_mask, causal=call.causal, scale=call.scale
        )


def _sdpa(calls: Sequence[Call]) -> Callable[[], None]:
    """PyTorch's own attention on these calls."""
    masks = [_mask(call) for call in calls]

    def run() -> None:
        for call, mask in zip(calls, masks, strict=True):
            _attend(call, mask)

    return run


def _attend(call: Call, mask: Tensor | None) -> Tensor:
    """The output of PyTorch's own attention, with the mask that :func:`_mask` makes of a call."""
    return scaled_dot_product_attention(
        call.query, call.key, call.value, mask, is_causal=call.causal and mask is None, scale=call.scale,
        enable_gqa=call.query.shape[1] != call.key.shape[1],
    )  # fmt: skip


def _mask(call: Call) -> Tensor | None:
    """The mask of a call, with what comes later forbidden where PyTorch does not take both, or aligns otherwise."""
    mask, q_len, kv_len = call.attn_mask, call.query.shape[2], call.key.shape[2]
    if not call.causal or (mask is None and q_len == kv_len):
        return mask
    earlier = torch.ones(q_len, kv_len, dtype=torch.bool, device=call.query.device).tril(kv_len - q_len)
    if mask is None or mask.dtype == torch.bool:
        return earlier if mask is None else earlier & mask
    return mask.masked_fill(~earlier, -torch.inf)


def _runs(function: Callable[[], None]) -> bool:
    """Whether a candidate takes these calls at all; linear attention refuses some masks, for one."""
    try:
        function()
    except (ValueError, NotImplementedError, RuntimeError):
        return False
    return True


def sdpa_seconds(costs: Mapping[str, float]) -> float:
    """Seconds of PyTorch's own attention, and of this project's where that does not take the call."""
    return costs.get(BASELINE, costs[DENSE])
