"""Forward and backward of N:M attention together, by the kernels themselves, against dense attention's.

Timed as ``dynattn bench --device cuda`` does: CUDA graphs over inputs that leave the L2 cache, functions in turns. A
function is timed only where its gradients were right in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dynattn.bench import cuda as timing
from dynattn.bench.cases import Workload
from dynattn.bench.peers import peers
from dynattn.bench.timing import interleaved
from dynattn.kernels import cuda
from dynattn.kernels.pattern import Pattern
from dynattn.methods import NM
from dynattn.reference import nm as reference

METHODS = (NM(1, 2), NM(2, 4), NM(1, 2, window=64, sinks=4))
TINY = Workload(heads=2, q_len=64, head_dim=64, dtype="bfloat16", causal=True)  # for a run without a device
_DENSE = ("sdpa", "sdpa-cudnn", "sdpa-flash")
_SECONDS = 0.8  # for a workload, all functions together
_TOKENS, _COLUMNS = 16384, 2048  # of batch times length, and of heads times head_dim, as FlashAttention's benchmark has
_PRODUCTS = 3.5  # dense: 2 products forward and 5 backward, in units of the forward's 2

_Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # query, key, value, the output's gradient
_Step = Callable[..., tuple[Tensor, ...]]  # of these: the gradients of the first three


def workloads() -> list[Workload]:
    """bfloat16, causal and not."""
    return [
        Workload(_COLUMNS // head_dim, length, head_dim, _TOKENS // length, dtype="bfloat16", causal=causal)
        for head_dim in (64, 128)
        for causal in (False, True)
        for length in (512, 1024, 2048, 4096, 8192)
    ]


def measure(workload: Workload, device: str = "cuda") -> list[dict]:
    """One record a function: whether its gradients were right and, on a GPU, the time of forward and backward."""
    drawn = timing.input_sets(workload) if device == "cuda" else [workload.inputs()]
    sets = [(*inputs, torch.randn_like(inputs[2])) for inputs in drawn]
    steps: dict[str, tuple[NM, _Step]] = {
        name: (NM(1, 1), partial(_by_peer, workload, peer))
        for name, peer in peers(workload, device).items()
        if name in _DENSE
    }
    by_method = _by_kernels if device == "cuda" else _by_definition
    steps |= {method.name: (method, partial(by_method, workload, method)) for method in METHODS}
    records = {}
    for name, (method, step) in steps.items():
        records[name] = {"label": workload.label, "function": name, "dense": name in _DENSE}
        try:
            records[name] |= _judge(workload, method, step(*sets[0]), sets[0])
        except (RuntimeError, ImportError, TypeError) as error:
            records[name]["failed"] = str(error).strip().splitlines()[0][:200]
    if device == "cuda":
        right = {name: step for name, (_, step) in steps.items() if records[name].get("right")}
        _time(workload, sets, right, records)
    return list(records.values())


def line(found: list[dict]) -> str:
    """One workload in words."""
    dense = [record["milliseconds"] for record in found if record["dense"] and "milliseconds" in record]
    words = []
    for record in found:
        if "milliseconds" not in record:
            words.append(f"{record['function']}: {record.get('failed') or ('right' if record['right'] else 'wrong')}")
            continue
        ratio = f" {min(dense) / record['milliseconds']:.2f}×" if dense and not record["dense"] else ""
        words.append(f"{record['function']} {record['milliseconds']:.3f} ms{ratio}")
    return f"training {found[0]['label']}: " + ", ".join(words)


def _time(workload: Workload, sets: list[_Inputs], steps: dict[str, _Step], records: dict[str, dict]) -> None:
    runs = {name: timing.captured([partial(_run, step, inputs) for inputs in sets]) for name, step in steps.items()}
    timed = interleaved(
        runs, seconds=_SECONDS, min_sample=timing.MIN_SAMPLE, waited=lambda: None, elapsed=timing.elapsed,
        each=len(sets),
    )  # fmt: skip
    for name, spread in timed.items():
        records[name] |= {
            "milliseconds": spread.median * 1e3, "quartiles": [1e3 * x for x in spread.quartiles],
            "samples": len(spread.samples), "dense_tflops": _PRODUCTS * workload.dense_flops / spread.median * 1e-12,
        }  # fmt: skip


def _run(step: _Step, inputs: _Inputs) -> Tensor:
    return step(*inputs)[0]


def _by_autograd(call: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    *inputs, grad_out = tensors
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(call(*leaves), leaves, grad_out)


def _by_peer(workload: Workload, peer: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
    return _by_autograd(lambda query, key, value: peer(workload, query, key, value)(), *tensors)


def _by_kernels(workload: Workload, method: NM, query: Tensor, key: Tensor, value: Tensor, grad_out: Tensor) -> tuple:
    pattern = Pattern.of(method, workload.causal, workload.head_dim**-0.5)
    out, logsumexp = torch.empty_like(query), torch.empty(query.shape[:3], device=query.device)
    cuda.nm_forward(query, key, value, None, out, logsumexp, None, None, None, pattern, for_backward=True)
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    nothing = torch.zeros_like(logsumexp)
    cuda.nm_backward(grad_out, nothing, query, key, value, None, out, logsumexp, pattern, *gradients, None)
    return gradients


def _by_definition(workload: Workload, method: NM, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Unfused, in the element type, with the exact choice: the same computation by plain PyTorch."""

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale = query.shape[-1] ** -0.5
        exact = reference.scores(query.detach().double(), key.detach().double(), None, workload.causal, scale)
        scores = (query @ key.mT * scale).masked_fill(~reference.choose(exact, method), -math.inf)
        return scores.softmax(-1) @ value

    return _by_autograd(call, *tensors)


def _judge(workload: Workload, method: NM, got: tuple[Tensor, ...], tensors: _Inputs) -> dict:
    """The first head's gradients against the definition in float64; twice the error of plain PyTorch is allowed."""
    query, key, value, grad_out = (x[:1, :1] for x in tensors)
    nothing = torch.zeros(query.shape[:3], dtype=torch.float64, device=query.device)
    want = reference.backward(
        grad_out.double(), nothing, query.double(), key.double(), value.double(), method, None, workload.causal
    )
    near = _by_definition(workload, method, query, key, value, grad_out)
    errors, right = {}, all(bool(x.isfinite().all()) for x in got)
    for name, mine, exactly, plain in zip(("query", "key", "value"), got, want, near, strict=False):
        error, of_plain = ((x[:1, :1].double() - exactly).abs().max().item() for x in (mine, plain))
        bound = 2 * of_plain + torch.finfo(mine.dtype).eps * exactly.abs().max().item()
        errors[name] = {"error": error if math.isfinite(error) else None, "bound": bound}
        right = right and error <= bound
    return {"errors": errors, "right": right}
