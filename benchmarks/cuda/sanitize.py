"""Small problems for compute-sanitizer: every kernel and every way through it, once.

compute-sanitizer --tool memcheck python benchmarks/cuda/sanitize.py
"""

from __future__ import annotations

import itertools
from functools import partial

import torch

from dynattn import NM, attention

_METHODS = (NM(1, 2), NM(2, 4), NM(1, 2, window=20, sinks=3), NM(2, 4, stride=16))
_SIZES = ((130, 208, 64), (67, 129, 128), (5, 3, 32), (70, 130, 256))  # q_len, kv_len, head_dim


def run(device: str = "cuda") -> int:
    """How many calls were made."""
    calls = 0
    for method, (q_len, kv_len, head_dim), aux, masked in itertools.product(
        _METHODS, _SIZES, (False, True), (False, True)
    ):
        generator = torch.Generator().manual_seed(0)
        query = torch.randn(1, 4, q_len, head_dim, generator=generator).bfloat16().to(device)
        key, value = (torch.randn(1, 2, kv_len, head_dim, generator=generator).bfloat16().to(device) for _ in range(2))
        mask = (torch.rand(q_len, kv_len, generator=generator) > 0.3).to(device) if masked else None
        backend = "cuda" if device == "cuda" else "reference"
        call = partial(attention, method=method, attn_mask=mask, causal=aux, backend=backend)
        call(query, key, value, return_aux=aux)
        leaves = [x.requires_grad_() for x in (query, key, value)]
        dropped = call(*leaves, dropout_p=0.1 * aux)
        torch.autograd.grad(dropped, leaves, torch.randn_like(query))  # the backward's kernels
        calls += 1
    calls += _tf32(device)
    if device == "cuda":
        torch.cuda.synchronize()
    return calls


def _tf32(device: str) -> int:
    """The kernel for float32."""
    torch.set_float32_matmul_precision("high")
    query, key, value = (torch.randn(1, 2, length, 64, device=device) for length in (70, 130, 130))
    backend = "cuda" if device == "cuda" else "reference"
    for method in _METHODS:
        attention(query, key, value, method, causal=True, backend=backend)
    torch.set_float32_matmul_precision("highest")
    return len(_METHODS)


if __name__ == "__main__":
    print(f"{run()} calls")
