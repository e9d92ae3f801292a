"""The few functions of the CUDA driver that a launch needs, called through NVIDIA's own bindings."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch

from dynattn.kernels.cuda import loader
from dynattn.kernels.cuda.variants import Instantiation

_OLDEST_CAPABILITY = (8, 0)  # the first that has mma.sp
_HOPPER = (9, 0)
_STATIC_SHARED_LIMIT = 48 * 1024  # bytes of shared memory that a block may have without asking
_ELEMENT_BYTES = 2
_MAP_BYTES = 128  # the size and the alignment of a CUtensorMap; CUDA 13 declares this alignment, and CUDA 12 half of it
_TMA_SINCE = 12000  # the CUDA version whose signature the function pointer has

_loading = threading.Lock()
_kernels: dict[tuple[Instantiation, int], Any] = {}  # the loaded kernels, by variant and device


class Device(NamedTuple):
    """What the choice of a kernel depends on.

    Attributes:
        index: its number, as torch counts devices.
        arch: the architecture to compile for, as in ``sm_80``; on Hopper ``sm_90a``, for Hopper's own instructions.
        multiprocessors: how many multiprocessors it has.
        shared_bytes: how many bytes of shared memory one block may have.
    """

    index: int
    arch: str
    multiprocessors: int
    shared_bytes: int


class TensorMap(NamedTuple):
    """A tensor as the copy engine (TMA) sees it: swizzled by 128 bytes; elements outside are read as 0.

    Attributes:
        address: the address of the first element.
        dtype: ``bfloat16`` or ``float16``.
        sizes: the size of each dimension, the innermost first.
        strides: the strides of all dimensions but the innermost, in elements.
        box: how many elements of each dimension one copy moves.
    """

    address: int
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]


@cache
def device(index: int) -> Device:
    """The device that torch counts as ``index``."""
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    arch = f"sm_{properties.major}{properties.minor}{'a' if capability == _HOPPER else ''}"
    return Device(index, arch, properties.multi_processor_count, properties.shared_memory_per_block_optin)


@cache
def unavailable_reason(index: int) -> str | None:
    """Why the kernels cannot run on the device that torch counts as ``index``; None where they can."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA; install a CUDA build of PyTorch, then " + loader.REMEDY
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST_CAPABILITY:
        return f"they need compute capability 8.0, and {torch.cuda.get_device_name(index)} has {_dotted(capability)}"
    reason = loader.missing()
    if reason is not None:
        return reason
    arch = capability[0] * 10 + capability[1]
    nvrtc, supported = loader.nvrtc_version(), _supported_cuda()
    if arch not in loader.nvrtc_architectures():
        return f"NVRTC {_dotted(nvrtc)}, the compiler, does not know sm_{arch}; take a newer one: {loader.REMEDY} -U"
    if supported[0] < nvrtc[0]:
        return (
            f"the driver runs code of CUDA {_dotted(supported)} and NVRTC, the compiler, is of {_dotted(nvrtc)}; "
            "update the driver, or, for CUDA 12, pip install 'dynattn[cuda12]'"
        )
    return None


def launch(
    variant: Instantiation, device: Device, blocks: int, params: ctypes.Structure, tensor_maps: tuple[TensorMap, ...],
    stream: int,
) -> None:  # fmt: skip
    """Put a kernel on a stream of the current device. On its first use it is compiled and loaded before.

    Raises:
        ImportError: cuda-core or NVRTC is missing.
        RuntimeError: the compiler or the driver refused; the text has its message.
    """
    driver = _driver()
    kernel = _kernels.get((variant, device.index)) or _load(variant, device)
    _ensure_context(device.index)
    arguments = (params, *map(_encode, tensor_maps))
    (status,) = driver.cuLaunchKernel(
        kernel, blocks, 1, 1, variant.threads, 1, 1, variant.shared_bytes, stream,
        (arguments, (None,) * len(arguments)), 0,
    )  # fmt: skip
    if int(status):
        _check(status, f"launch of {variant.name_expression}")


def _load(variant: Instantiation, device: Device) -> Any:
    """The handle by which the driver knows the kernel."""
    driver = _driver()
    with _loading, _capture_allows_loading():
        if (variant, device.index) in _kernels:  # another thread was faster
            return _kernels[variant, device.index]
        compiled = loader.compile_variant(variant, device.arch)
        _ensure_context(device.index)
        what = f"loading {variant.name_expression}"
        library = _check(driver.cuLibraryLoadData(compiled.cubin, [], [], 0, [], [], 0), what)
        kernel = _check(driver.cuLibraryGetKernel(library, compiled.symbol.encode()), what)
        if variant.shared_bytes > _STATIC_SHARED_LIMIT:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            ordinal = _check(driver.cuDeviceGet(device.index), what)
            _check(driver.cuKernelSetAttribute(attribute, variant.shared_bytes, kernel, ordinal), what)
        _kernels[variant, device.index] = driver.CUfunction(int(kernel))  # cuLaunchKernel takes either
        return _kernels[variant, device.index]


@contextmanager
def _capture_allows_loading() -> Iterator[None]:
    """While active, a kernel can be loaded during the capture of a CUDA graph, which otherwise forbids what loading
    does."""
    driver = _driver()
    exchange = driver.cuThreadExchangeStreamCaptureMode
    mode = _check(exchange(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED), "loading")
    try:
        yield
    finally:
        _check(exchange(mode), "loading")


def _ensure_context(index: int) -> None:
    """Make torch's context current in a thread that has made no call to the CUDA runtime yet, and so has none."""
    driver = _driver()
    if int(_check(driver.cuCtxGetCurrent(), "asking for the context")) == 0:
        ordinal = _check(driver.cuDeviceGet(index), "asking for the device")
        primary = _check(driver.cuDevicePrimaryCtxRetain(ordinal), "taking the device's context")
        _check(driver.cuCtxSetCurrent(primary), "taking the device's context")


class _Descriptor(ctypes.Structure):
    """A ``CUtensorMap``, opaque."""

    _fields_ = (("words", ctypes.c_uint64 * (_MAP_BYTES // 8)),)


@lru_cache(maxsize=1024)
def _encode(tensor_map: TensorMap) -> _Descriptor:
    """The descriptor that the copy engine reads.

    Not by cuda-bindings' own function: the object that it fills stands where Python's allocator puts it, at a multiple
    of 16, and the driver asks for 64 (CUDA driver API, cuTensorMapEncodeTiled: "tensorMap address must be aligned to 64
    bytes").
    """
    driver, encode = _driver(), _encode_function()
    dtype = {
        "bfloat16": driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        "float16": driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    }[tensor_map.dtype]
    rank = len(tensor_map.sizes)
    memory = (ctypes.c_ubyte * (2 * _MAP_BYTES))()
    made = _Descriptor.from_buffer(memory, -ctypes.addressof(memory) % _MAP_BYTES)
    status = encode(
        ctypes.addressof(made), int(dtype), rank, tensor_map.address,
        (ctypes.c_uint64 * rank)(*tensor_map.sizes),
        (ctypes.c_uint64 * (rank - 1))(*(_ELEMENT_BYTES * stride for stride in tensor_map.strides)),
        (ctypes.c_uint32 * rank)(*tensor_map.box),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        int(driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
        int(driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B),
        int(driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
        int(driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
    )  # fmt: skip
    _check(driver.CUresult(status), f"describing {tensor_map} to the copy engine")
    return made


@cache
def _encode_function() -> Any:
    """``cuTensorMapEncodeTiled`` of the driver itself."""
    driver, pointer, integer = _driver(), ctypes.c_void_p, ctypes.c_int
    address = _check(driver.cuGetProcAddress(b"cuTensorMapEncodeTiled", _TMA_SINCE, 0), "asking for tensor maps")
    arguments = (pointer, integer, ctypes.c_uint32, pointer, *[pointer] * 4, *[integer] * 4)
    return ctypes.CFUNCTYPE(integer, *arguments)(int(address))


@cache
def _driver() -> Any:
    return import_module("cuda.bindings.driver")


@cache
def _supported_cuda() -> tuple[int, int]:
    """Newest CUDA whose code the driver runs."""
    driver = _driver()
    version = _check(driver.cuDriverGetVersion(), "asking the driver for its version")
    return version // 1000, version % 1000 // 10


def _check(result: Any, what: str) -> Any:
    """The value of a driver call, or a RuntimeError with the driver's message."""
    status, *values = result if isinstance(result, tuple) else (result,)
    if int(status) != 0:
        raise RuntimeError(f"nm_forward: {what} failed: the CUDA driver says {status.name}")
    return values[0] if values else None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
