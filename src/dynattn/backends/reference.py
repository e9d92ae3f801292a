"""The definition in plain PyTorch, which computes everything, anywhere."""

from __future__ import annotations

from typing import cast

import torch

from dynattn.backends.base import Backend, run_nm
from dynattn.backends.problem import Call, Problem, Result
from dynattn.methods.base import Choice, MixingMethod
from dynattn.ops.library import no_autocast
from dynattn.ops.mixing import mixing_attention
from dynattn.ops.pairs import pair_attention
from dynattn.ops.sharding import is_sharded


class Reference(Backend):
    """Plain PyTorch. Where a method keeps pairs, a block of queries is computed at a time."""

    name = "reference"

    def cannot(self, problem: Problem) -> str | None:
        return None

    def what(self, problem: Problem) -> str:
        alone = problem.method.choice is Choice.NONE
        return "plain PyTorch" if alone else "plain PyTorch, a block of queries at a time"

    def run(self, call: Call) -> Result:
        method = call.method
        if method.choice is Choice.GROUPS:
            return run_nm(call, self.name)
        if method.choice is not Choice.NONE:
            return Result(*pair_attention(
                *call.tensors, method.known_as, call.causal, call.scale, call.dropout_p, call.aux
            ))  # fmt: skip
        tensors = (call.query, call.key, call.value)
        one_node = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or call.query.is_meta
        if one_node or is_sharded(call.query):
            return Result(mixing_attention(*tensors, call.attn_mask, method.known_as, call.causal, call.scale))
        with no_autocast(call.query.device):
            mixing = cast(MixingMethod, method)
            return Result(mixing.attend(*tensors, attn_mask=call.attn_mask, causal=call.causal, scale=call.scale))
