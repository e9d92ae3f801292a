"""PyTorch's own attention, for methods that keep everything."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dynattn.backends.base import Backend
from dynattn.backends.problem import Call, Problem, Result


class SDPA(Backend):
    """``torch.nn.functional.scaled_dot_product_attention``."""

    name = "sdpa"

    def cannot(self, problem: Problem) -> str | None:
        if not problem.method.keeps_everything:
            return f"it is dense, and {problem.method.known_as} is not"
        if problem.aux:
            return "it returns no logsumexp"
        if problem.dropout:
            return "it draws other pairs for dropout"
        if problem.masked:
            return "it gives NaN for rows that a mask empties"
        if problem.causal and problem.q_len != problem.kv_len:
            return "it aligns causal masks top-left where q_len != kv_len"
        if problem.causal and problem.device.type == "cpu":
            return "with causal masks a NaN in a value reaches rows before it"
        if problem.sharded and problem.device.type == "cpu":
            return "on CPUs it does not take DTensor"
        return None

    def what(self, problem: Problem) -> str:
        return "torch.nn.functional.scaled_dot_product_attention"

    def run(self, call: Call) -> Result:
        return Result(self.settled(call)(call.query, call.key, call.value, None))  # what it finds out is soon found

    def settled(self, call: Call) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
        causal, scale, trains = call.causal, call.scale, call.needs_grad
        grouped = True if call.query.shape[1] != call.key.shape[1] else False  # noqa: SIM210  # symbols are no bool

        def run(query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None) -> Tensor:
            if scale < 0:  # of which PyTorch makes NaN behind a causal mask
                query = -query
            if trains:
                query, key, value = _apart(query), _apart(key), _apart(value)
            return scaled_dot_product_attention(
                query, key, value, is_causal=causal, scale=abs(scale), enable_gqa=grouped
            )  # fmt: skip

        return run


def _apart(x: Tensor) -> Tensor:
    """``x``, or a copy of it where its elements share memory: PyTorch 2.13 gives such an input a wrong gradient on
    CPUs."""
    if x.is_contiguous():
        return x
    reach = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride < reach:
            return x.contiguous()
        reach = max(reach, stride * size)
    return x
