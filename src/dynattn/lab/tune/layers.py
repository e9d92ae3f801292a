"""A model's attention modules as they run: their time, and the linear layer that each one's output goes through."""

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

OWN = "dynattn:dense"
_WATCHED = "tune-watched"


class Clocked(NamedTuple):
    """One forward with PyTorch's dense attention.

    Attributes:
        forward: the seconds of the whole forward.
        modules: the seconds inside attention, by the module's name.
    """

    forward: float
    modules: dict[str, float]

    @property
    def share(self) -> float:
        """The share of attention in the forward."""
        return sum(self.modules.values()) / self.forward


@torch.inference_mode()
def clocked(pretrained: Pretrained, inputs: Inputs) -> Clocked:
    """Time a forward, and the attention in it module by module.

    Args:
        pretrained: the model; it is left with PyTorch's attention.
        inputs: the inputs of the forward.
    """
    with _watched(pretrained) as seconds:
        start = time.perf_counter()
        pretrained.model(**inputs)
        forward = time.perf_counter() - start
    return Clocked(forward, dict(seconds))


@contextmanager
def _watched(pretrained: Pretrained) -> Iterator[dict[str, float]]:
    """While active, the model attends by SDPA, and seconds are counted by module."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    inner = ALL_ATTENTION_FUNCTIONS[BASELINE]
    seconds: dict[str, float] = defaultdict(float)
    names = named(pretrained)

    def run(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = inner(module, *args, **kwargs)
        seconds[names[module]] += time.perf_counter() - start
        return out

    AttentionInterface.register(_WATCHED, run)
    AttentionMaskInterface.register(_WATCHED, ALL_MASK_ATTENTION_FUNCTIONS[BASELINE])
    pretrained.model.set_attn_implementation(_WATCHED)
    try:
        yield seconds
    finally:
        pretrained.model.set_attn_implementation(BASELINE)


def named(pretrained: Pretrained) -> dict[nn.Module, str]:
    """The name of each module."""
    return {module: name for name, module in pretrained.model.named_modules()}


class Place(NamedTuple):
    """Where an attention module stands.

    Attributes:
        layer: the entry of a ``ModuleList`` that holds it, whose input is the residual stream; else the module itself.
        out: the linear layer that reads its output; None where none does.
    """

    layer: nn.Module
    out: nn.Module | None


@torch.inference_mode()
def places(pretrained: Pretrained, inputs: Inputs) -> dict[str, Place]:
    """Each attention module's place, seen in one forward: the next linear layer of a fitting width reads its output.

    Args:
        pretrained: the model; it is left with this project's dense attention.
        inputs: the inputs of the forward; short ones suffice.

    Returns:
        By the module's name, in the order in which they attend.

    Raises:
        ValueError: no attention module of the model takes part.
    """
    around, names = _around(pretrained.model), named(pretrained)
    found: dict[str, Place] = {}
    waiting: list[tuple[str, nn.Module, int]] = []

    def attended(call: Call) -> None:
        name = names[call.module]
        if name not in found:
            found[name] = Place(around.get(call.module, call.module), None)
            waiting[:] = [(name, found[name].layer, call.query.shape[1] * call.value.shape[-1])]

    def reads(module: nn.Module, given: Sequence[Any]) -> None:
        if waiting and given and isinstance(given[0], Tensor):
            name, layer, width = waiting[0]
            if given[0].shape[-1] == width:
                found[name] = Place(layer, module)
                waiting.clear()

    hooks = [m.register_forward_pre_hook(reads) for m in pretrained.model.modules() if _weight(m) is not None]
    pretrained.model.set_attn_implementation(OWN)
    try:
        with observing(attended):
            pretrained.model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(
            f"tune: the model must take its attention from Transformers' interface: {pretrained.name} "
            f"({type(pretrained.model).__name__}) made no call of it: {coverage(pretrained.model)}; call "
            "dynattn.attention in its attention module, or tune another model"
        )
    return found


def weight(module: nn.Module, width: int) -> Tensor:
    """The matrix of a linear layer, (outputs, width), whichever way round it is stored.

    Args:
        module: a module with a two-dimensional ``weight``.
        width: the width of its input.
    """
    stored = _weight(module)
    if stored is None or width not in stored.shape:
        raise ValueError(f"tune: {type(module).__name__} must be a linear layer of {width} inputs")
    return stored if isinstance(module, nn.Linear) or stored.shape[0] != width else stored.T


def _weight(module: nn.Module) -> Tensor | None:
    found = getattr(module, "weight", None)
    if isinstance(module, nn.Embedding) or not isinstance(found, Tensor) or found.dim() != 2:
        return None
    return found


def _around(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """For each module inside of a ``ModuleList``'s entry: the innermost such entry that has more in it."""
    found: dict[nn.Module, nn.Module] = {}
    for listing in model.modules():  # outer ones come first, inner ones after them
        if isinstance(listing, nn.ModuleList):
            for entry in listing:
                found.update({module: entry for module in entry.modules() if module is not entry})
    return found
