"""Where a model attends, seen while it runs: by its operators, whatever modules are called and however it is written.

Attention is a fused operator for it; a softmax over the last of four dimensions; or weights that reach a product of
matrices: from a softmax, from ``exp`` over its sum, from ``exp`` of scores less the logarithm of that sum, or from
``exp`` where the product is divided by the sum. Weights are followed through all that keeps their number of elements,
and through views.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from dynattn.integrations.transformers import Coverage, observing

_FUSED = ("_scaled_dot_product", "_native_multi_head", "_transformer_encoder_layer", "_flash_attention", "_efficient_a")
_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "matmul"}
_SOFTMAX = {"_softmax", "_safe_softmax"}
# What a tensor holds of scores s: e^s, its sum, one over it, its logarithm, s less that, weights, e^s times values.
EXP, SUM, INVERSE, LOG_SUM, LOG_WEIGHTS, WEIGHTS, OUTPUT = range(7)
_BECOMES = {
    ("exp", LOG_WEIGHTS): WEIGHTS, ("sum", EXP): SUM, ("cumsum", EXP): SUM, ("log", SUM): LOG_SUM,
    ("reciprocal", SUM): INVERSE, ("exp2", LOG_WEIGHTS): WEIGHTS,
}  # fmt: skip
_MEET = {
    ("div", EXP, SUM): WEIGHTS, ("mul", EXP, INVERSE): WEIGHTS, ("mul", INVERSE, EXP): WEIGHTS,
    ("sub", None, LOG_SUM): LOG_WEIGHTS,
}  # fmt: skip
# Modules whose weights are none of attention: a matrix LSTM in its parallel form divides by the sum of its gates.
_RECURRENT = {"xLSTMBackend"}


class Watch(TorchDispatchMode):
    """Sees which modules run, which of them call dynattn, and where else there is attention.

    Args:
        model: its modules are told apart.
        parts: what is said of them.

    Attributes:
        ran: the modules that are said to take part, and ran.
        called: those that called dynattn.
        attending: for each place with attention that is not dynattn's: the classes inside the module and around it,
            that of its own last.
    """

    def __init__(self, model: nn.Module, parts: Coverage) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        self.taking_part = {modules[part.name] for part in parts.taking_part}
        self.ran: set[nn.Module] = set()
        self.called: set[nn.Module] = set()
        self.attending: set[tuple[str, ...]] = set()
        self.stack: list[nn.Module] = []
        self.held = WeakIdKeyDictionary()

    def enter(self, module: nn.Module, _: Any) -> None:
        self.stack.append(module)
        if module in self.taking_part:
            self.ran.add(module)

    def leave(self, *_: Any) -> None:
        self.stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        inputs = [one for one in args if isinstance(one, Tensor)]
        found = [self.held.get(one) for one in inputs]
        if name.startswith(_FUSED) or (name in _SOFTMAX and args[1] in (-1, args[0].dim() - 1) and args[0].dim() >= 4):
            self._attends()
        if name in _PRODUCTS and WEIGHTS in found:
            self._attends()
        if name == "div" and found == [OUTPUT, SUM]:
            self._attends()
        held = _now_held(name, inputs, found, out, func)
        if held is not None:
            self.held[out] = held
        return out

    def _attends(self) -> None:
        if self.called.intersection(self.stack) or _RECURRENT & {type(module).__name__ for module in self.stack}:
            return
        around = [module for module in self.stack if not isinstance(module, (nn.Softmax, nn.Dropout))]
        kinds = [type(module).__name__ for one in around[-1:] for module in one.modules()]
        self.attending.add((*kinds, *(type(module).__name__ for module in around)))


@contextlib.contextmanager
def watching(model: nn.Module, parts: Coverage) -> Iterator[Watch]:
    """While active, what the model does is seen by the :class:`Watch` that it gives."""
    watch = Watch(model, parts)
    hooks = [
        torch.nn.modules.module.register_module_forward_pre_hook(watch.enter),
        torch.nn.modules.module.register_module_forward_hook(watch.leave, always_call=True),
    ]
    try:
        with watch, observing(lambda call: watch.called.add(call.module)):
            yield watch
    finally:
        for hook in hooks:
            hook.remove()


def _now_held(name: str, inputs: list[Tensor], found: list[int | None], out: Any, func: Any) -> int | None:
    """What the result of an operator holds; None where it is nothing to follow."""
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return None
    if name in _SOFTMAX:
        return WEIGHTS
    if name == "_log_softmax":
        return LOG_WEIGHTS
    if name == "logsumexp":
        return LOG_SUM
    if len(found) == 2:
        for (meeting, left, right), held in _MEET.items():
            if name == meeting and found[1] == right and left in (None, found[0]):
                return held
    if not any(held is not None for held in found):
        return EXP if name in ("exp", "exp2") else None
    first = next(i for i, held in enumerate(found) if held is not None)
    held = found[first]
    if name in _PRODUCTS:
        return OUTPUT if EXP in found else None
    if (name, held) in _BECOMES:
        return _BECOMES[name, held]  # type: ignore[index]
    return held if func.is_view or out.numel() == inputs[first].numel() else None
