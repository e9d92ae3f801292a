"""Named suites of workloads, one set for each kind of device."""

from __future__ import annotations

from dataclasses import replace

from dynattn.lab.bench.cases import Case, Workload
from dynattn.methods.nm import NM

_Suites = dict[str, list[tuple[Workload, tuple[NM, ...]]]]


def suite(name: str, device: str = "cpu") -> tuple[Case, ...]:
    """The cases of a named suite; those of one workload stand together and are timed together.

    Args:
        name: one of :func:`suites`.
        device: ``cpu`` or ``cuda``.

    Raises:
        ValueError: no suite has this name there.
    """
    if name not in _SUITES[device]:
        raise ValueError(f"suite: name must be one of {', '.join(_SUITES[device])} on {device}: got {name!r}")
    return tuple(Case(workload, method) for workload, methods in _SUITES[device][name] for method in methods)


def suites(device: str = "cpu") -> tuple[str, ...]:
    """Names of the suites."""
    return tuple(_SUITES[device])


_METHODS = (NM(1, 1), NM(1, 2), NM(2, 4))
_WINDOW = NM(1, 2, window=64, sinks=4)
_MAIN = ((48, 384, 64), (48, 512, 64), (24, 1024, 64), (12, 2048, 64), (6, 4096, 64), (12, 512, 32), (12, 1024, 128))


def _targets() -> list[tuple[Workload, tuple[NM, ...]]]:
    both = [Workload(*shape, causal=causal) for shape in _MAIN for causal in (False, True)]
    return [
        (workload, (*_METHODS, _WINDOW) if workload.q_len == 2048 else _METHODS)
        for workload in both
        if workload.q_len >= 1024 or not workload.causal
    ]


_BERT = Workload(batch=4, heads=12, q_len=512, head_dim=64)  # a BERT-base layer
_LLAMA = Workload(heads=32, kv_heads=8, q_len=1024, head_dim=128, causal=True)  # a Llama-3-8B layer

_CPU: _Suites = {
    "targets": _targets(),
    "small": [
        (Workload(heads, length, 64, causal=causal), _METHODS)
        for heads in (1, 12)
        for length in (64, 128, 256, 384)
        for causal in (False, True)
    ],
    # the paper's shapes, batch 48 and 24 there: a CPU needs no more than 2 and 1 to be full
    "paper": [
        (Workload(batch=1 if length == 4096 else 2, heads=4, q_len=length, head_dim=64), _METHODS)
        for length in (256, 512, 1024, 2048, 4096)
    ],
    "dtypes": [
        (replace(Workload(12, length, 64), dtype=dtype), _METHODS)
        for length in (512, 2048)
        for dtype in ("float32", "bfloat16", "float16")
    ],
    "layout": [
        (replace(workload, layout=layout), _METHODS) for workload in (_BERT, _LLAMA) for layout in ("bhld", "blhd")
    ],
    "training": [
        (Workload(*shape, causal=causal, training=True), _METHODS)
        for shape in ((48, 384, 64), (24, 1024, 64), (12, 2048, 64), (12, 512, 32))
        for causal in (False, True)
    ],
    "decode": [
        (Workload(heads=32, kv_heads=kv_heads, q_len=1, kv_len=kv_len, head_dim=128), _METHODS)
        for kv_heads in (32, 8)
        for kv_len in (1024, 8192)
    ],
    # Hardly any arithmetic, so that a time is what a call costs. In training there are four keys, of which every method
    #     keeps at least two, since the weight of a single one never changes and gives no gradient to check.
    "call": [
        (Workload(heads=1, q_len=1, head_dim=8), _METHODS),
        (Workload(heads=1, q_len=4, head_dim=8, training=True), _METHODS),
    ],
}

# On a GPU, dense attention is torch's own: there is no dense kernel of ours to time beside it.
_SPARSE = (NM(1, 2), NM(2, 4), NM(1, 2, stride=16), NM(2, 4, stride=16), _WINDOW)
_TOKENS, _WIDTH = 16384, 2048  # of a batch, and heads · head_dim: as FlashAttention's own benchmark has them


def _lengths() -> list[Workload]:
    return [
        Workload(
            batch=max(1, _TOKENS // length), heads=_WIDTH // head_dim, q_len=length, head_dim=head_dim,
            dtype="bfloat16", causal=causal, layout="blhd",
        )
        for head_dim in (64, 128)
        for causal in (False, True)
        for length in (384, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    ]  # fmt: skip


_CUDA: _Suites = {
    "targets": [(workload, _SPARSE) for workload in _lengths()],
    "training": [
        (replace(workload, training=True), (*_SPARSE[:2], _WINDOW))
        for workload in _lengths()
        if 512 <= workload.q_len <= 4096
    ],
    # the shapes of arXiv:2203.00091
    "paper": [
        (Workload(batch=24 if length == 4096 else 48, heads=4, q_len=length, head_dim=64, dtype="bfloat16"), _SPARSE)
        for length in (256, 512, 1024, 2048, 4096)
    ],
    "dtypes": [
        (replace(Workload(batch=4, heads=16, q_len=length, head_dim=64), dtype=dtype), _SPARSE[:2])
        for length in (512, 2048)
        for dtype in ("bfloat16", "float16", "tf32")
    ],
    "layout": [
        (replace(workload, batch=8, dtype="bfloat16", layout=layout), _SPARSE[:2])
        for workload in (_BERT, _LLAMA)
        for layout in ("bhld", "blhd")
    ],
    "decode": [(replace(workload, batch=16, dtype="bfloat16"), _SPARSE[:2]) for workload, _ in _CPU["decode"]],
}

_SUITES: dict[str, _Suites] = {"cpu": _CPU, "cuda": _CUDA}
