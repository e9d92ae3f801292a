"""Forward and backward of N:M attention against dense attention's, by the kernels themselves, in CUDA graphs.

Timed as ``dynattn bench`` times the forward; a function is timed only where its gradients were right in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from attention import without_wgmma
from torch import Tensor

from dynattn import NM
from dynattn.kernels import cuda
from dynattn.kernels.cuda import driver
from dynattn.kernels.pattern import Pattern
from dynattn.lab.bench import cuda as timing
from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.peers import peers
from dynattn.lab.timing import interleaved
from dynattn.maths import dropout
from dynattn.methods.nm import choose
from dynattn.reference import pairs as reference


class Case(NamedTuple):
    """What is computed: what is kept, with which probability of that is dropped; on Hopper, by the kernels of sm_80?"""

    method: NM
    dropout_p: float = 0.0
    by_mma: bool = False

    @property
    def name(self) -> str:
        return self.method.name + (f" dropout {self.dropout_p}" if self.dropout_p else "") + " by mma" * self.by_mma


CASES = (Case(NM(1, 2)), Case(NM(2, 4)), Case(NM(1, 2, window=64, sinks=4)))
WITH_DROPOUT = (Case(NM(1, 2), 0.1), Case(NM(2, 4), 0.1))  # at one shape
DROPOUT_SHAPE = (64, 2048, True)  # head_dim, length, causal
EARLIER = (Case(NM(1, 2), by_mma=True), Case(NM(2, 4), by_mma=True))  # on Hopper, at one length
EARLIER_LENGTH = 4096
TINY = Workload(heads=2, q_len=64, head_dim=64, dtype="bfloat16", causal=True)  # for a run without a device
_SEED = 7  # of dropout
_DENSE = ("sdpa", "sdpa-cudnn", "sdpa-flash")
_SECONDS = 0.8  # for a workload, all functions together; never less than the least number of rounds

_Step = Callable[..., tuple[Tensor, ...]]  # query, key, value and the output's gradient -> the gradients of the three


def workloads() -> list[Workload]:
    """16384 tokens and 2048 columns of heads, as FlashAttention's own benchmark has them."""
    return [
        Workload(
            batch=16384 // length, heads=2048 // head_dim, q_len=length, head_dim=head_dim, dtype="bfloat16",
            causal=causal, layout="blhd",
        )
        for head_dim in (64, 128)
        for causal in (False, True)
        for length in (512, 1024, 2048, 4096, 8192)
    ]  # fmt: skip


def measure(workload: Workload, device: str = "cuda") -> list[dict]:
    """One record a function: whether its gradients were right, and, on a device, forward's and backward's time."""
    inputs = timing.input_sets(workload) if device == "cuda" else [workload.inputs()]
    sets = [(*tensors, torch.randn_like(tensors[2])) for tensors in inputs]
    steps: dict[str, tuple[Case, _Step]] = {
        name: (Case(NM(1, 1)), partial(_by_autograd, partial(_call, workload, peer)))
        for name, peer in peers(workload, device).items()
        if name in _DENSE
    }
    dropped = (workload.head_dim, workload.q_len, workload.causal) == DROPOUT_SHAPE or device != "cuda"
    earlier = device == "cuda" and driver.device(0).arch == "sm_90a" and workload.q_len == EARLIER_LENGTH
    cases = CASES + (WITH_DROPOUT if dropped else ()) + (EARLIER if earlier else ())
    steps |= {case.name: (case, _step(case, workload.causal, device)) for case in cases}
    records = {name: {"label": workload.label, "function": name} for name in steps}
    right = {}
    for name, (case, step) in steps.items():
        try:
            records[name] |= _judge(workload, step(*sets[0]), sets[0], case)
        except (RuntimeError, ImportError, TypeError) as error:
            records[name]["failed"] = str(error).strip().splitlines()[0][:200]
        if records[name].get("right"):
            right[name] = step
    for name, figures in _times(workload, right, sets).items() if device == "cuda" else ():
        records[name] |= figures
    return list(records.values())


def line(records: list[dict]) -> str:
    """One workload in words; each N:M method with how many times as fast as the best dense one it is."""
    dense = [r["milliseconds"] for r in records if "milliseconds" in r and r["function"] in _DENSE]
    words = []
    for record in records:
        if "milliseconds" in record:
            sparse = record["function"] not in _DENSE and dense
            ratio = f" {min(dense) / record['milliseconds']:.2f}×" if sparse else ""
            words.append(f"{record['function']} {record['milliseconds']:.3f} ms{ratio}")
        else:
            words.append(f"{record['function']}: {record.get('failed') or ('right' if record['right'] else 'wrong')}")
    return f"{records[0]['label']}, forward and backward: " + ", ".join(words)


def _times(workload: Workload, steps: dict[str, _Step], sets: list[tuple[Tensor, ...]]) -> dict[str, dict]:
    if not steps:
        return {}
    graphs = {name: timing.captured([partial(step, *tensors) for tensors in sets]) for name, step in steps.items()}
    timings = interleaved(
        graphs, seconds=_SECONDS, min_sample=timing.MIN_SAMPLE, waited=lambda: None, elapsed=timing.elapsed,
        each=len(sets),
    )  # fmt: skip
    return {
        name: {
            "milliseconds": found.median * 1e3, "quartiles": [1e3 * x for x in found.quartiles],
            "samples": len(found.samples),
            "dense_tflops": 3.5 * workload.dense_flops / found.median * 1e-12,  # 2 products forward, 5 backward
        }
        for name, found in timings.items()
    }  # fmt: skip


def _call(workload: Workload, peer: Callable, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return peer(workload, query, key, value)()


def _by_autograd(call: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    *inputs, grad_out = (x.detach() for x in tensors)
    leaves = [x.requires_grad_() for x in inputs]
    return torch.autograd.grad(call(*leaves), leaves, grad_out)


def _step(case: Case, causal: bool, device: str) -> _Step:
    seed = torch.tensor(_SEED, device=device) if case.dropout_p else None
    if device == "cuda":
        return partial(_by_kernels, case, seed, causal)
    return partial(_by_autograd, partial(_defined, case, causal))  # a dry run


def _by_kernels(
    case: Case, seed: Tensor | None, causal: bool, query: Tensor, key: Tensor, value: Tensor, grad_out: Tensor
) -> tuple[Tensor, ...]:
    pattern = Pattern.of(case.method, causal, query.shape[-1] ** -0.5)._replace(dropout_p=case.dropout_p)
    out = torch.empty_like(query)
    logsumexp = torch.empty(query.shape[:3], device=query.device)
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    nothing = torch.zeros_like(logsumexp)
    with without_wgmma() if case.by_mma else nullcontext():
        cuda.nm_forward(
            query, key, value, None, out, logsumexp, None, None, None, pattern, for_backward=True, seed=seed
        )  # fmt: skip
        cuda.nm_backward(grad_out, nothing, query, key, value, None, out, logsumexp, *gradients, None, pattern, seed)
    return gradients


def _defined(case: Case, causal: bool, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Unfused, in the element type, with the exact choice: the same computation by plain PyTorch."""
    q, k = query.detach().double(), key.detach().double()
    kept = choose(reference.scores(q, k, None, causal, q.shape[-1] ** -0.5), case.method)
    scores = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~kept, -math.inf)
    weights = scores.softmax(-1)
    drops = _drops(case, query, key)
    return (weights if drops is None else (weights * drops).to(weights.dtype)) @ value


def _drops(case: Case, query: Tensor, key: Tensor) -> Tensor | None:
    """Factors of dropout: of these heads, counted from the first."""
    if not case.dropout_p:
        return None
    batch, heads, q_len, _ = query.shape
    return dropout.factors(_SEED, case.dropout_p, batch, heads, range(q_len), key.shape[2], query.device)


def _judge(workload: Workload, got: tuple[Tensor, ...], tensors: tuple[Tensor, ...], case: Case) -> dict:
    """The first head's gradients against the definition in float64; twice the error of plain PyTorch is allowed."""
    query, key, value, grad_out = (x[:1, :1] for x in tensors)
    nothing = torch.zeros(query.shape[:3], dtype=torch.float64, device=query.device)
    want = reference.backward(
        grad_out.double(), nothing, query.double(), key.double(), value.double(), case.method, None, workload.causal,
        drops=_drops(case, query, key),
    )  # fmt: skip
    near = _by_autograd(partial(_defined, case, workload.causal), query, key, value, grad_out)
    errors, right = {}, all(bool(x.isfinite().all()) for x in got)
    for name, mine, exactly, plain in zip(("query", "key", "value"), got, want, near, strict=False):
        error, of_plain = ((x[:1, :1].double() - exactly).abs().max().item() for x in (mine, plain))
        bound = 2 * of_plain + torch.finfo(mine.dtype).eps * exactly.abs().max().item()
        errors[name] = {"error": error if math.isfinite(error) else None, "bound": bound}
        right = right and error <= bound
    return {"errors": errors, "right": right}
