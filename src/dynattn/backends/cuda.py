"""The fused CUDA kernels, which compute N:M attention."""

from __future__ import annotations

from typing import cast

import torch

from dynattn.backends.base import Backend, run_nm
from dynattn.backends.problem import Call, Problem, Result
from dynattn.kernels import cuda
from dynattn.methods.base import Choice
from dynattn.methods.nm import NM


class CUDA(Backend):
    """The kernels for tensor cores, compiled at their first use."""

    name = "cuda"

    def cannot(self, problem: Problem) -> str | None:
        if problem.method.choice is not Choice.GROUPS:
            return f"its kernels compute N:M attention, and {problem.method.known_as} is another method"
        if problem.device.type != "cuda":
            return f"tensors are on {problem.device}"
        cannot = cuda.cannot_backward if problem.needs_grad else cuda.cannot
        return cannot(
            problem.dtype, cast(NM, problem.method), problem.head_dim, problem.value_dim, problem.device
        )  # fmt: skip

    def what(self, problem: Problem) -> str:
        rounded = problem.dtype == torch.float32
        dense = problem.method.keeps_everything or (rounded and cast(NM, problem.method).m == 4)
        what = f"fused CUDA kernel on {'' if dense else 'sparse '}tensor cores"
        if problem.dropout:
            what += " (the one for sm_80, which alone draws dropout)"
        return f"{what}, float32 rounded to TF32" if rounded else what

    def run(self, call: Call) -> Result:
        return run_nm(call, self.name)
