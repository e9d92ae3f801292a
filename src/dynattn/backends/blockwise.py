"""Windows in time linear in length, on any device: dense attention of blocks of queries to the keys near them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from dynattn.backends.base import Backend
from dynattn.backends.problem import Call, Problem, Result
from dynattn.methods.base import Choice
from dynattn.methods.nm import NM
from dynattn.methods.window import Window
from dynattn.ops.library import unobserved
from dynattn.ops.windows import forward, window_attention


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
        return "dense attention of blocks of queries to the keys near them"

    def run(self, call: Call) -> Result:
        method = cast(Window, call.method)
        blocks = call.problem._replace(method=NM(1, 1), causal=False, masked=True, mask_by_query=True)
        run = forward if not call.needs_grad and unobserved(call.query, call.key, call.value) else window_attention
        out, _ = run(
            call.query, call.key, call.value, call.attn_mask, method.window, method.sinks, call.causal, call.scale,
            call.needs_grad, self._fastest(blocks).name,
        )  # fmt: skip
        return Result(out)
