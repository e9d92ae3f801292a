"""Loading and launching of small kernels; shared by the steps of the device run."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = Path(__file__).parents[2] / "src" / "dynattn" / "kernels" / "cuda"


def compile_cubin(source: str, arch: str, name: str = "") -> tuple[str, bytes, str]:
    """Symbol, machine code and compiler's log of the kernel ``name`` (a template instantiation, or "" for ``rate``)."""
    import io

    from cuda.core import Program, ProgramOptions  # pyright: ignore

    options = ProgramOptions(arch=arch, std="c++17", include_path=str(SOURCES), ptxas_options=["-v"])
    log = io.StringIO()
    code = Program(source, "c++", options).compile("cubin", name_expressions=(name,) if name else (), logs=log)
    symbol = code.symbol_mapping[name] if name else "rate"
    return symbol.decode() if isinstance(symbol, bytes) else symbol, bytes(code.code), log.getvalue()


class Kernel:
    """A small kernel, loaded; call it with tensors."""

    def __init__(self, symbol: str, cubin: bytes, shared_bytes: int = 0) -> None:
        self._driver = _driver()
        self._shared_bytes = shared_bytes
        torch.zeros(1, device="cuda")  # makes torch's context current
        self._library = self._call("cuLibraryLoadData", cubin, [], [], 0, [], [], 0)
        kernel = self._call("cuLibraryGetKernel", self._library, symbol.encode())
        if shared_bytes > 48 * 1024:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            device = self._call("cuDeviceGet", torch.cuda.current_device())
            self._call("cuKernelSetAttribute", attribute, shared_bytes, kernel, device)
        self._function = self._driver.CUfunction(int(kernel))

    def __call__(self, blocks: int, threads: int, *arguments: Tensor) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        values = tuple(x.data_ptr() for x in arguments), (ctypes.c_void_p,) * len(arguments)
        self._call("cuLaunchKernel", self._function, blocks, 1, 1, threads, 1, 1, self._shared_bytes, stream, values, 0)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._driver, name)(*arguments)
        if int(status):
            raise RuntimeError(f"{name}: {status.name}")
        return values[0] if values else None


def _driver() -> Any:
    from importlib import import_module

    return import_module("cuda.bindings.driver")
