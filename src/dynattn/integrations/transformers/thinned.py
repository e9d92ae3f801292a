"""Has a model's linear layers leave something out, by phase, for tuned files.

What :class:`dynattn.sparsity.LinearSetting` does in all calls of a context is done here in the calls of a phase alone:
``decode`` is calls of at most :data:`dynattn.sparsity.weights.packed.FEW` tokens, which is what kernels for steps take,
and ``prefill`` all others but steps of larger batches, which stay dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from dynattn.sparsity import LinearSetting

PHASES = ("prefill", "decode")


@contextmanager
def thinning(model: nn.Module, settings: Mapping[str, LinearSetting]) -> Iterator[None]:
    """While active, the model's linear layers leave out in each phase what its setting says.

    Args:
        model: the model that the settings are for.
        settings: by phase; one that has none is dense.

    Raises:
        ValueError: as :meth:`dynattn.sparsity.LinearSetting.apply`.
    """
    from dynattn.pruning.replaced import ReplacedForward, replace  # imports torch._dynamo, which takes a second

    by_phase: dict[nn.Module, dict[str, Callable[..., Any]]] = {}
    with ExitStack() as undo:
        others = _forwards(model)
        for phase, setting in settings.items():
            undo.enter_context(setting.apply(model))
            for module, forward in _forwards(model).items():
                if others.get(module) is not forward:
                    by_phase.setdefault(module, {})[phase] = forward
                    del vars(module)["forward"]  # the next phase's takes its place, and both come back below
        for module, forwards in by_phase.items():
            replace(module, "forward", ReplacedForward(module.forward, _chosen(forwards)), undo)
        yield


def _forwards(model: nn.Module) -> dict[nn.Module, Callable[..., Any]]:
    """The forwards that are not their classes' own."""
    return {module: vars(module)["forward"] for module in model.modules() if "forward" in vars(module)}


def _chosen(forwards: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The forward of the phase that a call is of, else the module's own."""
    from dynattn.sparsity.sites import given, rows
    from dynattn.sparsity.weights.packed import FEW

    def run(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        x = given(args, kwargs)
        phase = "decode" if len(rows(x)) <= FEW else "step" if x.dim() == 3 and x.shape[1] == 1 else "prefill"
        return forwards.get(phase, own)(*args, **kwargs)

    return run
