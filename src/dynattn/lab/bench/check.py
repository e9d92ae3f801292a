"""Checks that a result is right, since the time of a wrong one is worth nothing.

    error ≤ 2 · error of plain PyTorch in the same dtype + one unit in the last place of the largest value

Both errors are taken against the definition in float64, on a sample of query rows of every head. The inputs of
:meth:`~dynattn.lab.bench.cases.Workload.inputs` make every score exact, so all computations choose the same pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dynattn.lab.bench.cases import Workload
from dynattn.methods.nm import NM, choose
from dynattn.reference import pairs as reference

_BLOCKS, _ROWS = 5, 5  # rows are checked in blocks that are no multiple of a kernel's tile, the first and last included


@dataclass(frozen=True)
class Check:
    """The outcome of a comparison.

    Attributes:
        error: the largest absolute difference from the float64 reference; infinite where the result is NaN.
        bound: the largest error that passes.
        rows: how many query rows were compared, in all heads together.
    """

    error: float
    bound: float
    rows: int

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


class Checker:
    """Judges results for one workload and its inputs. The right result of each method is computed once.

    Args:
        workload: what is asked for.
        query, key, value: the inputs, as :meth:`Workload.inputs` gives them.
    """

    def __init__(self, workload: Workload, query: Tensor, key: Tensor, value: Tensor) -> None:
        self._workload = workload
        self._inputs = query, key, value
        self._exact = query.double(), key.double(), value.double()
        self._expected: dict[NM, tuple[list[Tensor], float]] = {}

    def check(self, out: Tensor, method: NM) -> Check:
        """Compare ``out`` with the definition of ``method``.

        Args:
            out: (batch, heads, q_len, head_dim), the result to judge.
            method: what was to be kept; ``NM(1, 1)`` for dense attention.

        Returns:
            The error and its bound; a result of a wrong shape or dtype has an infinite error.
        """
        query = self._inputs[0]
        if out.shape != query.shape or out.dtype != query.dtype:
            return Check(math.inf, 0.0, 0)
        if method not in self._expected:
            self._expected[method] = self._expect(method)
        wanted, bound = self._expected[method]
        blocks = [out[:, :, block].double() for block in _sample(self._workload.q_len)]
        error = max(_largest(block - want) for block, want in zip(blocks, wanted, strict=True))
        return Check(error, bound, sum(want[..., 0].numel() for want in wanted))

    def _expect(self, method: NM) -> tuple[list[Tensor], float]:
        """For each block of rows what the definition gives in float64; and the bound on errors."""
        blocks = [self._expect_rows(rows, method) for rows in _sample(self._workload.q_len)]
        plain_error = max(_largest(plain.double() - want) for want, plain in blocks)
        value = self._inputs[2]
        unit = torch.finfo(value.dtype).eps * value.abs().max().item()
        return [want for want, _ in blocks], 2 * plain_error + unit

    def _expect_rows(self, rows: slice, method: NM) -> tuple[Tensor, Tensor]:
        """The definition in float64, and the same computation in the inputs' dtype with the same choice."""
        workload, scale = self._workload, self._workload.head_dim**-0.5
        offset = workload.kv_len - workload.q_len + rows.start
        query, key, value = self._exact
        query = query[:, :, rows]
        kept = choose(reference.scores(query, key, None, workload.causal, scale, offset), method, offset)
        want = reference.forward(query, key, value, method, None, workload.causal, scale, offset, kept).out
        query, key, value = self._inputs
        key, value = (x.repeat_interleave(workload.heads // workload.kv_heads, dim=1) for x in (key, value))
        scores = (query[:, :, rows] * scale) @ key.mT
        return want, scores.masked_fill(~kept, -math.inf).softmax(-1) @ value


def _sample(q_len: int) -> list[slice]:
    """Blocks of rows, spread evenly from the first row to the last."""
    if q_len <= _BLOCKS * _ROWS:
        return [slice(0, q_len)]
    last = q_len - _ROWS
    starts = [round(last * i / (_BLOCKS - 1)) for i in range(_BLOCKS)]
    return [slice(start, start + _ROWS) for start in starts]


def _largest(difference: Tensor) -> float:
    largest = difference.abs().max().item()
    return math.inf if math.isnan(largest) else largest
