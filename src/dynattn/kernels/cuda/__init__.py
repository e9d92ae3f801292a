"""The fused CUDA kernels: compiled at their first use, launched on torch's current stream.

``params.cuh`` and ``variants.py`` are the contract between the sources and Python; ``loader`` compiles, ``launch``
and ``launch_backward`` turn a call into launches, ``driver`` hands them to the device. Nothing is imported from
NVIDIA's packages, compiled or loaded before the first call with tensors on a CUDA device.
"""

from __future__ import annotations

import torch

from dynattn.kernels.cuda import driver, launch, launch_backward, variants
from dynattn.kernels.cuda.launch import nm_forward
from dynattn.kernels.cuda.launch_backward import nm_backward

__all__ = ["cannot", "cannot_backward", "nm_backward", "nm_forward"]


def cannot(dtype: torch.dtype, n: int, m: int, head_dim: int, value_dim: int, device: torch.device) -> str | None:
    """Why the kernels do not take this problem; None where they do.

    Args:
        dtype: of query, key and value.
        n, m: the pattern.
        head_dim: of query and key.
        value_dim: of value.
        device: where the tensors are.
    """
    if dtype not in launch.DTYPES:
        return f"the kernels take bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if (n, m) not in variants.PATTERNS:
        return f"the kernels compute 1:2 and 2:4, not {n}:{m}"
    for name, size in (("head_dim", head_dim), ("value_dim", value_dim)):
        if size % launch.HEAD_DIM_STEP or size > variants.HEAD_DIMS[-1]:
            return f"the kernels take a {name} of 8, 16, … {variants.HEAD_DIMS[-1]}, not {size}"
    if torch.compiler.is_compiling():  # a tracer cannot ask the driver; the operator does, when it runs
        return None
    return driver.unavailable_reason(device.index)


def cannot_backward(
    dtype: torch.dtype, n: int, m: int, stride: int, head_dim: int, value_dim: int, device: torch.device
) -> str | None:
    """Why the gradient of this problem is computed by the formula in plain PyTorch; None where a kernel does it.

    Args:
        dtype, n, m, head_dim, value_dim, device: as for :func:`cannot`.
        stride: of a group's keys.
    """
    if dtype not in launch.DTYPES:
        return f"the backward kernels take bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if stride != 1:
        return f"the backward kernels take groups of consecutive keys, not of stride {stride}"
    reason = cannot(dtype, n, m, head_dim, value_dim, device)
    if reason is not None or torch.compiler.is_compiling():
        return reason
    needed = launch_backward.smallest_shared_bytes(max(head_dim, value_dim))
    available = driver.device(device.index).shared_bytes
    if needed > available:
        return f"a block needs {needed} bytes of shared memory, and the device has {available}"
    return None
