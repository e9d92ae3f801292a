"""A model's attention layers as they run: their time, and the linear layer that each one's output goes through."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.integrations.transformers import Call, coverage, observing
from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs

_WATCHED = "tune-watched"


class Clocked(NamedTuple):
    """One forward with PyTorch's dense attention.

    Attributes:
        forward: seconds of all of it.
        layers: seconds inside attention, by layer.
    """

    forward: float
    layers: dict[int, float]

    @property
    def share(self) -> float:
        """Of attention."""
        return sum(self.layers.values()) / self.forward


@torch.inference_mode()
def clocked(pretrained: Pretrained, inputs: Inputs) -> Clocked:
    """Time a forward, and the attention in it layer by layer.

    Args:
        pretrained: the model; it is left with PyTorch's attention.
        inputs: of the forward.
    """
    with _watched(pretrained) as seconds:
        start = time.perf_counter()
        pretrained.model(**inputs)
        forward = time.perf_counter() - start
    return Clocked(forward, dict(seconds))


@contextmanager
def _watched(pretrained: Pretrained) -> Iterator[dict[int, float]]:
    """While active, the model attends by SDPA, and seconds are counted by layer."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    inner = ALL_ATTENTION_FUNCTIONS[BASELINE]
    seconds: dict[int, float] = defaultdict(float)
    order: dict[nn.Module, int] = {}

    def run(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = inner(module, *args, **kwargs)
        seconds[number(module, order)] += time.perf_counter() - start
        return out

    AttentionInterface.register(_WATCHED, run)
    AttentionMaskInterface.register(_WATCHED, ALL_MASK_ATTENTION_FUNCTIONS[BASELINE])
    pretrained.model.set_attn_implementation(_WATCHED)
    try:
        yield seconds
    finally:
        pretrained.model.set_attn_implementation(BASELINE)


def number(module: nn.Module, order: dict[nn.Module, int]) -> int:
    """A module's layer, as :class:`dynattn.integrations.transformers.Call` has it."""
    layer = getattr(module, "layer_idx", None)
    return order.setdefault(module, len(order)) if layer is None else layer


class Place(NamedTuple):
    """Where an attention module stands.

    Attributes:
        layer: the module of a ``ModuleList`` that holds it, whose input is the residual stream; else the module itself.
        out: the linear layer that reads its output; None where none does.
    """

    layer: nn.Module
    out: nn.Module | None


@torch.inference_mode()
def places(pretrained: Pretrained, inputs: Inputs) -> dict[nn.Module, Place]:
    """Each attention module's place, seen in one forward: the next linear layer of a fitting width reads its output.

    Args:
        pretrained: the model; it is left with this project's dense attention.
        inputs: of the forward; short ones do.

    Raises:
        ValueError: no attention module of the model takes part, or one does not say which layer it is.
    """
    around = _around(pretrained.model)
    found: dict[nn.Module, Place] = {}
    waiting: list[tuple[nn.Module, nn.Module, int]] = []

    def attended(call: Call) -> None:
        if call.module not in found:
            layer = around.get(call.module, call.module)
            found[call.module] = Place(layer, None)
            waiting.append((call.module, layer, call.query.shape[1] * call.value.shape[-1]))

    def reads(module: nn.Module, given: Sequence[Any]) -> None:
        if not waiting or not given or not isinstance(given[0], Tensor):
            return
        attention, layer, width = waiting[-1]
        if given[0].shape[-1] == width:
            found[attention] = Place(layer, module)
            waiting.clear()

    hooks = [m.register_forward_pre_hook(reads) for m in pretrained.model.modules() if _weight(m) is not None]
    pretrained.model.set_attn_implementation("dynattn:dense")
    try:
        with observing(attended):
            pretrained.model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    _check(pretrained, found)
    return found


def weight(module: nn.Module, width: int) -> Tensor:
    """The matrix of a linear layer, (outputs, width), whichever way round it is stored."""
    stored = _weight(module)
    if stored is None or width not in stored.shape:
        raise ValueError(f"tune: {type(module).__name__} must be a linear layer of {width} inputs")
    inputs_last = isinstance(module, nn.Linear) or stored.shape[0] != width
    return stored if inputs_last else stored.T


def _weight(module: nn.Module) -> Tensor | None:
    found = getattr(module, "weight", None)
    if isinstance(module, nn.Embedding) or not isinstance(found, Tensor) or found.dim() != 2:
        return None
    return found


def _around(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """For each module inside of a ``ModuleList``'s entry: the innermost such entry."""
    found: dict[nn.Module, nn.Module] = {}
    for listing in model.modules():  # outer ones come first, inner ones after them
        if isinstance(listing, nn.ModuleList):
            for entry in listing:
                found.update(dict.fromkeys(entry.modules(), entry))
    return found


def _check(pretrained: Pretrained, found: dict[nn.Module, Place]) -> None:
    name = f"{pretrained.name} ({type(pretrained.model).__name__})"
    if not found:
        raise ValueError(
            f"tune: the model must take its attention from Transformers' interface: {name} made no call of it; "
            f"{coverage(pretrained.model)}; call dynattn.attention in its attention module, or tune another model"
        )
    nameless = [type(module).__name__ for module in found if getattr(module, "layer_idx", None) is None]
    if nameless:
        for index, module in enumerate(found):
            if getattr(module, "layer_idx", None) is None:
                module.layer_idx = index  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
