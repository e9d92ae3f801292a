"""The functions against which methods are timed: the best dense attention there is, and the paper's own baseline.

Each function here returns a call without arguments, so that what a user prepares once, such as a mask, is not timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from dynattn.lab.bench.cases import DTYPES, Workload

SDPA, UNFUSED = "sdpa", "unfused"
FLASH_3 = "flash-attention-3"

_SDPA_BACKENDS = {
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
DENSE = (SDPA, *_SDPA_BACKENDS, FLASH_3)  # peers that are fused dense attention; the fastest of them is the baseline
_FLASH_3_MODULES = ("flash_attn_interface", "fa3_fwd_interface")  # of its own build, and of the wheel fa3-fwd
_FLASH_3_DTYPES = ("bfloat16", "float16")
_UNFUSED_BYTES = 8 << 30  # more bytes of scores than this do not fit on a GPU beside the rest

Peer = Callable[[Workload, Tensor, Tensor, Tensor], Callable[[], Tensor]]


def peers(workload: Workload, device: str = "cpu") -> dict[str, Peer]:
    """The functions that are timed beside the methods on ``cpu`` or ``cuda``, by name."""
    found: dict[str, Peer] = {SDPA: sdpa}
    if device == "cuda":
        found |= {name: partial(sdpa, backend=backend) for name, backend in _SDPA_BACKENDS.items()}
        module = next(filter(find_spec, _FLASH_3_MODULES), None)
        if module is not None and workload.dtype in _FLASH_3_DTYPES:
            found[FLASH_3] = partial(flash_attention_3, module=module)
    scores = workload.batch * workload.heads * workload.q_len * workload.kv_len * DTYPES[workload.dtype].itemsize
    if device != "cuda" or 2 * scores <= _UNFUSED_BYTES:
        found[UNFUSED] = unfused
    return found


def sdpa(
    workload: Workload, query: Tensor, key: Tensor, value: Tensor, backend: SDPBackend | None = None
) -> Callable[[], Tensor]:
    """``torch.nn.functional.scaled_dot_product_attention``, by torch's own choice or by one backend of it."""
    gqa = workload.heads != workload.kv_heads

    def call() -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=workload.causal, enable_gqa=gqa)

    def call_backend() -> Tensor:
        with sdpa_kernel(backend):  # pyright: ignore[reportArgumentType]  # not None here
            return call()

    return call if backend is None else call_backend


def flash_attention_3(
    workload: Workload, query: Tensor, key: Tensor, value: Tensor, module: str
) -> Callable[[], Tensor]:
    """FlashAttention-3, arXiv:2407.08608; its tensors are (batch, length, heads, head_dim)."""
    function = import_module(module).flash_attn_func
    blhd = [x.transpose(1, 2) for x in (query, key, value)]

    def call() -> Tensor:
        out = function(*blhd, causal=workload.causal)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)  # some releases return logsumexp too

    return call


def unfused(workload: Workload, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """Matmul, softmax and matmul, with the scores in memory: the baseline of arXiv:2203.00091."""
    group = workload.heads // workload.kv_heads
    scale = workload.head_dim**-0.5
    forbidden = None
    if workload.causal:
        forbidden = torch.ones(workload.q_len, workload.kv_len, dtype=torch.bool, device=query.device).triu(1)

    def call() -> Tensor:
        k, v = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (key, value))
        scores = (query * scale) @ k.mT
        if forbidden is not None:
            scores.masked_fill_(forbidden, -math.inf)
        return scores.softmax(-1) @ v

    return call
