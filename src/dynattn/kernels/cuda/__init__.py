"""The fused CUDA kernels: compiled at their first use, launched on torch's current stream.

``params.cuh`` and ``variants.py`` are the contract between the sources and Python; ``loader`` compiles, ``launch``
and ``launch_backward`` turn a call into launches, ``driver`` hands them to the device. Nothing is imported from
NVIDIA's packages, compiled or loaded before the first call with tensors on a CUDA device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynattn.kernels.cuda import driver, launch, launch_backward, variants
from dynattn.kernels.cuda.launch import nm_forward
from dynattn.kernels.cuda.launch_backward import nm_backward
from dynattn.kernels.pattern import Pattern
from dynattn.methods.nm import NM

__all__ = ["cannot", "cannot_backward", "kernel_name", "nm_backward", "nm_forward", "tf32_allowed"]


def kernel_name(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, for_backward: bool) -> str:
    """The name of the kernel for a call without mask and kept mass on its tensors' device, with its queries per
    block."""
    device, pattern = driver.device(query.device.index), launch.of_kernels(pattern)
    variant = launch.choose_variant(query, key, value, "none", False, pattern, device, for_backward)
    return f"{variant.kernel}, {variant.query_tile} queries a block"


def cannot(dtype: torch.dtype, method: NM, head_dim: int, value_dim: int, device: torch.device) -> str | None:
    """Why the kernels do not take this problem; None where they do.

    Args:
        dtype: the dtype of query, key and value.
        method: what to keep.
        head_dim: the last dimension of query and key.
        value_dim: the last dimension of value.
        device: the device that the tensors are on.
    """
    if dtype not in launch.DTYPES:
        return f"the kernels take bfloat16, float16 and float32, not {str(dtype).removeprefix('torch.')}"
    if dtype == torch.float32 and not torch.compiler.is_compiling() and not tf32_allowed():
        return (
            "the kernels round float32 to TF32, which is not allowed here; "
            "torch.set_float32_matmul_precision('high') allows it"
        )
    if not method.keeps_everything:
        if (method.n, method.m) not in variants.PATTERNS:
            return f"the kernels compute 1:2 and 2:4, not {method.n}:{method.m}"
        if method.stride not in variants.STRIDES:
            return f"the kernels take strides of {_listed(variants.STRIDES)}, not {method.stride}"
    largest = (variants.TF32_HEAD_DIMS if dtype == torch.float32 else variants.HEAD_DIMS)[-1]
    for name, size in (("head_dim", head_dim), ("value_dim", value_dim)):
        if size % launch.HEAD_DIM_STEP or size > largest:
            return f"the kernels take a {name} of 8, 16, … {largest}, not {size}"
    if torch.compiler.is_compiling():  # a tracer cannot ask the driver; the operator asks it when it runs
        return None
    return driver.unavailable_reason(device.index)


def tf32_allowed() -> bool:
    """Whether PyTorch may round products of float32 to TF32 on a GPU; the user decides."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # PyTorch 2.9 and later, where asking the older way may raise
        return matmul.fp32_precision == "tf32"
    return bool(matmul.allow_tf32)


def cannot_backward(dtype: torch.dtype, method: NM, head_dim: int, value_dim: int, device: torch.device) -> str | None:
    """Why the gradient of this problem is computed by the formula in plain PyTorch; None where kernels do it.

    Args:
        dtype, method, head_dim, value_dim, device: as for :func:`cannot`.
    """
    if launch.DTYPES.get(dtype) not in variants.DTYPES:
        return f"the backward kernels take bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    reason = cannot(dtype, method, head_dim, value_dim, device)
    if reason is not None or torch.compiler.is_compiling():
        return reason
    needed = launch_backward.smallest_shared_bytes(max(head_dim, value_dim))
    available = driver.device(device.index).shared_bytes
    if needed > available:
        return f"a block of the backward needs {needed} bytes of shared memory, and the device has {available}"
    return None


def _listed(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
