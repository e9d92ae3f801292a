"""Windows in time linear in length, on any device: by CPU kernels that know them, or as dense attention of blocks of
queries to the keys near them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from dynattn.backends.base import Backend
from dynattn.backends.problem import Call, Problem, Result
from dynattn.kernels.pattern import Pattern
from dynattn.methods.base import Choice
from dynattn.methods.nm import NM
from dynattn.methods.window import Window
from dynattn.ops.arguments import isa_of
from dynattn.ops.library import unobserved
from dynattn.ops.windows import forward, kernel_of, knows_windows, pattern, window_attention


class Blockwise(Backend):
    """Blocks of queries, each with the slice of keys that its windows reach.

    Args:
        fastest: gives the backend for the dense attention that the blocks are computed by.
    """

    name = "blockwise"

    def __init__(self, fastest: Callable[[Problem], Backend]) -> None:
        self._fastest = fastest

    def cannot(self, problem: Problem) -> str | None:
        if problem.method.choice is not Choice.WINDOW:
            return f"it computes windows, and {problem.method.known_as} is another method"
        if problem.aux:
            return "the kept mass needs the scores of all pairs"
        if problem.dropout:
            return "it draws other pairs for dropout"
        return None

    def what(self, problem: Problem) -> str:
        if knows_windows(self._dense(problem)):
            return "fused C++ kernel that skips what lies outside of the windows"
        return "dense attention of blocks of queries to the keys near them"

    def _dense(self, problem: Problem) -> str:
        """The name of the backend of the dense attention that windows are computed by."""
        blocks = problem._replace(method=NM(1, 1), causal=False, masked=True, mask_by_query=True)
        return self._fastest(blocks).name

    def kernel(self, call: Call) -> tuple[Pattern, str] | None:
        kernel, method = kernel_of(self._dense(call.problem)), cast(Window, call.method)
        if kernel is None:
            return None
        return pattern(method.window, method.sinks, call.causal, call.scale), isa_of(kernel)

    def run(self, call: Call) -> Result:
        method = cast(Window, call.method)
        run = forward if not call.needs_grad and unobserved(*call[:4]) else window_attention
        out, _ = run(
            call.query, call.key, call.value, call.attn_mask, method.window, method.sinks, call.causal, call.scale,
            call.needs_grad, self._dense(call.problem),
        )  # fmt: skip
        return Result(out)
