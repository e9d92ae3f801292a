"""Forward and backward of N:M attention against dense attention's, by the kernels themselves, in CUDA graphs.

Timed as in ``attention.py``; a function is timed only where its gradients were right in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import quantiles

import attention
import torch
from torch import Tensor

from dynattn import NM
from dynattn.kernels import cuda
from dynattn.kernels.pattern import Pattern
from dynattn.reference import nm as reference

METHODS = (NM(1, 2), NM(2, 4), NM(1, 2, window=64, sinks=4))
_DENSE = ("cudnn", "flash")

_Step = Callable[..., tuple[Tensor, ...]]  # query, key, value and the output's gradient -> the gradients of the three


def cases() -> list[attention.Case]:
    """16384 tokens and 2048 columns of heads, as FlashAttention's own benchmark has them."""
    return [
        attention.Case(16384 // length, 2048 // head_dim, length, head_dim, causal)
        for head_dim in (64, 128)
        for causal in (False, True)
        for length in (512, 1024, 2048, 4096, 8192)
    ]


def measure(case: attention.Case, device: str = "cuda", timed: bool = True) -> list[dict]:
    """One record a function: whether its gradients were right, and the times of forward and backward together."""
    sets = [(*tensors, torch.randn_like(tensors[2])) for tensors in attention._sets(case, device)]
    steps: dict[str, tuple[NM | None, _Step]] = {
        name: (None, partial(_by_autograd, partial(call, causal=case.causal)))
        for name, call in attention.peers(case).items()
        if name in _DENSE
    }
    steps |= {method.name: (method, _step(method, case.causal, device)) for method in METHODS}
    records, graphs = {}, {}
    for name, (method, step) in steps.items():
        records[name] = record = {"case": asdict(case), "label": case.label, "function": name}
        if method is not None:
            record["kernel"] = "mma"
        try:
            record |= _judge(case, step(*sets[0]), sets[0], method)
            if timed and record["right"]:
                graphs[name] = attention._graph(step, sets)
        except (RuntimeError, ImportError, TypeError) as error:
            record["failed"] = str(error).strip().splitlines()[0][:200]
    for name, times in attention._take_turns(graphs, len(sets)).items():
        q1, middle, q3 = quantiles(times, n=4)
        records[name] |= {
            "milliseconds": middle, "quartiles": [q1, q3], "samples": len(times),
            "dense_tflops": 3.5 * case.dense_flops / middle / 1e9,  # 2 products forward, 5 backward
        }  # fmt: skip
    return list(records.values())


def _by_autograd(call: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    *inputs, grad_out = (x.detach() for x in tensors)
    leaves = [x.requires_grad_() for x in inputs]
    return torch.autograd.grad(call(*leaves), leaves, grad_out)


def _step(method: NM, causal: bool, device: str) -> _Step:
    if device == "cuda":
        return partial(_by_kernels, method, causal)
    return partial(_by_autograd, partial(_defined, method, causal))  # a dry run


def _by_kernels(method: NM, causal: bool, query: Tensor, key: Tensor, value: Tensor, grad_out: Tensor) -> tuple:
    pattern = Pattern.of(method, causal, query.shape[-1] ** -0.5)
    out = torch.empty_like(query)
    logsumexp = torch.empty(query.shape[:3], device=query.device)
    cuda.nm_forward(query, key, value, None, out, logsumexp, None, None, None, pattern, for_backward=True)
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    nothing = torch.zeros_like(logsumexp)
    cuda.nm_backward(grad_out, nothing, query, key, value, None, out, logsumexp, pattern, *gradients, None)
    return gradients


def _defined(method: NM, causal: bool, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Unfused, in the element type, with the exact choice: the same computation by plain PyTorch."""
    q, k = query.detach().double(), key.detach().double()
    kept = reference.choose(reference.scores(q, k, None, causal, q.shape[-1] ** -0.5), method)
    scores = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~kept, -math.inf)
    return scores.softmax(-1) @ value


def _judge(case: attention.Case, got: tuple[Tensor, ...], tensors: tuple[Tensor, ...], method: NM | None) -> dict:
    """The first head's gradients against the definition in float64; twice the error of plain PyTorch is allowed."""
    method = method or NM(1, 1)
    query, key, value, grad_out = (x[:1, :1] for x in tensors)
    nothing = torch.zeros(query.shape[:3], dtype=torch.float64, device=query.device)
    exact = (x.double() for x in (query, key, value))
    want = reference.backward(grad_out.double(), nothing, *exact, method, None, case.causal)
    near = _by_autograd(partial(_defined, method, case.causal), query, key, value, grad_out)
    errors, right = {}, all(bool(x.isfinite().all()) for x in got)
    for name, mine, exactly, plain in zip(("query", "key", "value"), got, want, near, strict=False):
        error, of_plain = ((x[:1, :1].double() - exactly).abs().max().item() for x in (mine, plain))
        bound = 2 * of_plain + torch.finfo(mine.dtype).eps * exactly.abs().max().item()
        errors[name] = {"error": error if math.isfinite(error) else None, "bound": bound}
        right = right and error <= bound
    return {"errors": errors, "right": right}
