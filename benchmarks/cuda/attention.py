"""N:M attention against the best dense attention on the device, and against unfused attention.

Each function is captured in a CUDA graph that calls it once on each of several sets of inputs, more bytes together
than the L2 cache holds; a replay is timed by events, and the functions of one case take turns. So the figure is the
kernel's own time, without Python; what a call costs outside a graph is measured apart. A function is timed only where
its result was right in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from statistics import median, quantiles

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from dynattn import NM, attention, explain
from dynattn.kernels.cuda import launch as launching
from dynattn.kernels.pattern import Pattern
from dynattn.reference import nm as reference

METHODS = (NM(1, 2), NM(2, 4), NM(1, 2, window=64, sinks=4))
_ROUNDS = 15
_SAMPLED_ROWS = 8  # at the start, in the middle and at the end
_UNFUSED_BYTES = 8 << 30  # above this, unfused attention's scores do not fit beside the rest
_SETS_AT_MOST = 16
_SMALL = 1 << 22  # query rows times keys below which a call's own cost is worth knowing

_Inputs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A problem, in bfloat16; q_len == kv_len."""

    batch: int
    heads: int
    length: int
    head_dim: int
    causal: bool = False

    @property
    def label(self) -> str:
        return f"{self.batch}×{self.heads}×{self.length}×{self.head_dim}{' causal' if self.causal else ''}"

    @property
    def pairs(self) -> int:
        """That may attend, of all heads."""
        per_head = self.length * (self.length + 1) // 2 if self.causal else self.length**2
        return self.batch * self.heads * per_head

    @property
    def dense_flops(self) -> int:
        return 4 * self.pairs * self.head_dim

    def flops(self, method: NM | None) -> float:
        """All of QKᵀ, and PV for what is kept (the window and sinks left out)."""
        density = 1.0 if method is None else method.n / method.m
        return 2 * self.pairs * self.head_dim * (1 + density)

    @property
    def bytes(self) -> int:
        """Of one set of inputs and its output."""
        return 4 * self.batch * self.heads * self.length * self.head_dim * 2


def paper() -> list[Case]:
    """The shapes of arXiv:2203.00091."""
    return [Case(24 if length == 4096 else 48, 4, length, 64) for length in (256, 512, 1024, 2048, 4096)]


def lengths() -> list[Case]:
    """2048 columns of heads, 16384 tokens, as FlashAttention's own benchmark has them."""
    return [
        Case(max(1, 16384 // length), 2048 // head_dim, length, head_dim, causal)
        for head_dim in (64, 128)
        for causal in (False, True)
        for length in (384, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    ]


def measure(case: Case, device: str = "cuda", timed: bool = True) -> list[dict]:
    """One record a function: whether its result was right, and its times."""
    sets = _sets(case, device)
    functions: dict[str, tuple[NM | None, Callable[..., Tensor]]] = {
        name: (None, partial(call, causal=case.causal)) for name, call in peers(case).items()
    }
    for method in METHODS:
        functions[method.name] = method, partial(attention, method=method, causal=case.causal)
    expected = {method: _definition(case, sets[0], method) for method in (None, *METHODS)}
    records, graphs = {}, {}
    for name, (method, call) in functions.items():
        record = {"case": asdict(case), "label": case.label, "function": name}
        records[name] = record
        try:
            record |= _judge(case, call(*sets[0]), *expected[method])
            if method is not None:
                record["kernel"] = _kernel(sets[0], method, case.causal)
            if timed and record["right"]:
                graphs[name] = _graph(call, sets)
        except (RuntimeError, ImportError, TypeError) as error:
            record["failed"] = str(error).strip().splitlines()[0][:200]
    samples = _take_turns(graphs, len(sets))
    for name, times in samples.items():
        method, call = functions[name]
        q1, middle, q3 = quantiles(times, n=4)
        records[name] |= {
            "milliseconds": middle, "quartiles": [q1, q3], "samples": len(times),
            "dense_tflops": case.dense_flops / middle / 1e9, "tflops": case.flops(method) / middle / 1e9,
        }  # fmt: skip
        if case.length**2 <= _SMALL:
            records[name]["call_milliseconds"] = _call_milliseconds(call, sets)
    return list(records.values())


def peers(case: Case) -> dict[str, Callable[..., Tensor]]:
    """Dense attention, as fast as the device has it, and unfused."""
    found: dict[str, Callable[..., Tensor]] = {
        "cudnn": partial(_sdpa, backend=SDPBackend.CUDNN_ATTENTION),
        "flash": partial(_sdpa, backend=SDPBackend.FLASH_ATTENTION),
    }
    for module in ("fa3_fwd_interface", "flash_attn_interface"):
        with suppress(ImportError):
            found["flash-attention-3"] = partial(_flash_attention_3, module=__import__(module))
            break
    if 2 * case.batch * case.heads * case.length**2 * 2 <= _UNFUSED_BYTES:
        found["unfused"] = _unfused
    return found


@contextmanager
def without_wgmma() -> Iterator[None]:
    """On Hopper, the kernel of earlier devices."""
    sizes = launching.WGMMA_HEAD_DIMS
    launching.WGMMA_HEAD_DIMS = ()  # pyright: ignore
    launching._select.cache_clear()
    try:
        yield
    finally:
        launching.WGMMA_HEAD_DIMS = sizes
        launching._select.cache_clear()


def _sdpa(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(query, key, value, is_causal=causal)


def _flash_attention_3(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, module) -> Tensor:
    out = module.flash_attn_func(*(x.transpose(1, 2) for x in (query, key, value)), causal=causal)
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


def _unfused(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(_above(query.shape[2], query.device), -math.inf)
    return scores.softmax(-1) @ value


@lru_cache(maxsize=1)  # made once, as a user would
def _above(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def _kernel(tensors: _Inputs, method: NM, causal: bool) -> str:
    """What ran: the backend, and for the CUDA kernels which one."""
    backend = explain(*tensors, method, causal=causal).backend
    if backend != "cuda":
        return backend
    query, key, value = tensors
    prepared = launching.prepare(
        query, key, value, None, query, query, None, None, None, Pattern.of(method, causal, 1.0),
        launching.driver.device(query.device.index),
    )  # fmt: skip
    return f"{prepared.variant.kernel}, {prepared.variant.query_tile} queries a block"


def _sets(case: Case, device: str) -> list[_Inputs]:
    """Inputs that together exceed the L2 cache twice; queries and keys on a grid on which scores are exact."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 0
    count = min(_SETS_AT_MOST, 1 + math.ceil(2 * cache / case.bytes))
    generator = torch.Generator(device).manual_seed(0)
    shape = (case.batch, case.length, case.heads, case.head_dim)

    def draw(grid: bool) -> Tensor:
        x = torch.randn(shape, device=device, generator=generator)
        x = (x * 4).round().clamp(-16, 16) / 4 if grid else x
        return x.bfloat16().transpose(1, 2)  # as a model's projection gives it

    return [(draw(True), draw(True), draw(False)) for _ in range(count)]


def _definition(case: Case, tensors: _Inputs, method: NM | None) -> tuple[Tensor, float]:
    """Sampled rows by the definition in float64; and what an error may be, twice that of plain PyTorch in bfloat16."""
    method = method or NM(1, 1)
    query, key, value = (x[:1, :2] for x in tensors)
    wanted, error = [], 0.0
    for rows in _rows(case.length):
        q, k, v = query[:, :, rows].double(), key.double(), value.double()
        kept = reference.choose(
            reference.scores(q, k, None, case.causal, case.head_dim**-0.5, rows.start), method, rows.start
        )
        want = reference.forward(q, k, v, method, None, case.causal, None, rows.start, kept).out
        scores = (query[:, :, rows] @ key.mT * case.head_dim**-0.5).masked_fill(~kept, -math.inf)
        error = max(error, ((scores.softmax(-1) @ value).double() - want).abs().max().item())
        wanted.append(want)
    want = torch.cat(wanted, 2)
    return want, 2 * error + torch.finfo(value.dtype).eps * value.abs().max().item()


def _judge(case: Case, out: Tensor, want: Tensor, bound: float) -> dict:
    got = torch.cat([out[:1, :2, rows] for rows in _rows(case.length)], 2).double()
    error = (got - want).abs().max().item()
    finite = bool(out.isfinite().all())
    return {"error": error if math.isfinite(error) else None, "bound": bound, "right": finite and error <= bound}


def _rows(length: int) -> list[slice]:
    middle, count = length // 2, min(_SAMPLED_ROWS, length)
    return [slice(0, count), slice(middle - count // 2, middle + count - count // 2), slice(length - count, length)]


def _graph(call: Callable[..., Tensor], sets: list[_Inputs]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            call(*sets[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for tensors in sets:
            call(*tensors)
    return graph


def _take_turns(graphs: dict[str, torch.cuda.CUDAGraph], calls: int) -> dict[str, list[float]]:
    """Milliseconds of one call, one sample a round."""
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for graph in graphs.values():
        graph.replay()
    for _ in range(_ROUNDS if graphs else 0):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples[name].append(start.elapsed_time(end) / calls)
    return samples


def _call_milliseconds(call: Callable[..., Tensor], sets: list[_Inputs]) -> float:
    """Of one call from Python after another, Python's own time included."""
    times = []
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for index in range(50):
            call(*sets[index % len(sets)])
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 50)
    return median(times)
