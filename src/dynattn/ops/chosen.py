"""Code that the operators of rows and of blocks share. The forward of both hands its choice to the backward.

Both operators run on the CPU kernels. Their schemas begin with ``INPUTS`` and ``CALL`` of :mod:`dynattn.ops.library`
and end with the backend. The results that follow the certificate say what was chosen; the backward takes them between
``logsumexp`` and the inputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern, Positions
from dynattn.methods.base import PairMethod, Reach
from dynattn.methods.nm import NM
from dynattn.methods.registry import parse
from dynattn.ops import buffers
from dynattn.ops.arguments import expanded, integer, rows_contiguous

_DENSE = NM(1, 1)


class ByName(NamedTuple):
    """The arguments of such an operator after its tensors, in order."""

    method: str
    causal: bool
    scale: float
    dropout_p: float

    @property
    def pairs(self) -> PairMethod:
        """The method that the name stands for."""
        return cast(PairMethod, parse(self.method))

    @property
    def pattern(self) -> Pattern:
        """What the kernels choose by themselves among the pairs that are left, N:M inside kept blocks or all, and the
        window that is joined to it."""
        inside = cast("NM | None", self.pairs.inside_blocks) or _DENSE
        window, sinks = cast("Reach | None", self.pairs.joined) or (0, 0)
        return Pattern.of(inside, self.causal, self.scale)._replace(
            window=max(inside.window, window), sinks=max(inside.sinks, sinks), dropout_p=self.dropout_p
        )

    @property
    def positions(self) -> Positions:
        """What the kernels drop or keep for where it stands."""
        method = self.pairs
        return Positions(cast("Reach | None", method.within), method.joined is not None)

    @property
    def dense(self) -> Pattern:
        """The pattern of all pairs."""
        return Pattern.of(_DENSE, self.causal, self.scale)


def gradients(
    grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None, seed: Tensor | None, call: ByName, isa: str, **choice: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of query, key and value; ``choice`` is as :func:`dynattn.kernels.cpu.nm_backward` takes it."""
    d_query, d_key, d_value, _ = buffers.gradients(query, key, value, None, False)
    cpu.nm_backward(
        rows_contiguous(grad_out), grad_logsumexp.contiguous(), rows_contiguous(query), rows_contiguous(key),
        rows_contiguous(value), expanded(attn_mask, query, key), rows_contiguous(out), logsumexp.contiguous(), d_query,
        d_key, d_value, None, call.pattern, isa, seed=integer(seed), positions=call.positions, **choice,
    )  # fmt: skip
    return d_query, d_key, d_value
