"""Keys in the order of their clusters: they are put in that order, and the fastest backend runs what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor

from dynattn.backends.base import Backend
from dynattn.backends.problem import Call, Problem, Result
from dynattn.maths.scores import per_head
from dynattn.methods.clustered import Clustered


class Reordered(Backend):
    """Keys, values and the mask in another order, which is nothing to attention but to the choice of blocks.

    Args:
        fastest: gives the backend for attention to the keys in their order.
    """

    name = "reordered"

    def __init__(self, fastest: Callable[[Problem], Backend]) -> None:
        self._fastest = fastest

    def cannot(self, problem: Problem) -> str | None:
        if not isinstance(problem.method, Clustered):
            return f"it puts keys in order, and {problem.method.known_as} leaves them as they are"
        if problem.causal:
            return "a causal mask is one of pairs where keys are in another order"
        if problem.dropout:
            return "it draws other pairs for dropout"
        if problem.sharded:
            return "it takes no DTensor"
        return None

    def what(self, problem: Problem) -> str:
        inner = self._inner(problem)
        return f"keys in the order of their clusters, then {self._fastest(inner).what(inner)}"

    def run(self, call: Call) -> Result:
        method = cast(Clustered, call.method)
        order = method.order(call.key)
        key, value = (x.gather(2, order.unsqueeze(-1).expand(*order.shape, x.shape[3])) for x in (call.key, call.value))
        ordered = call._replace(method=method.method, key=key, value=value, attn_mask=_ordered(call, order))
        return self._fastest(ordered.problem).run(ordered)

    @staticmethod
    def _inner(problem: Problem) -> Problem:
        return problem._replace(method=cast(Clustered, problem.method).method)


def _ordered(call: Call, order: Tensor) -> Tensor | None:
    """The mask of the keys in their order."""
    if call.attn_mask is None:
        return None
    batch, heads, q_len, _ = call.query.shape
    mask = call.attn_mask
    rows = q_len if mask.dim() > 1 and mask.shape[-2] != 1 else 1
    of_heads = per_head(order, heads).unsqueeze(2)
    return mask.expand(batch, heads, rows, call.key.shape[2]).gather(3, of_heads.expand(-1, -1, rows, -1))
