"""Measures the limits of the machine: multiply-adds per second, and bytes per second.

    attainable FLOP/s = min(peak, intensity · bandwidth)

Attention at the lengths of the suites stands far right of the ridge (hundreds of FLOPs a byte): peak bounds it.

Source: Williams, Waterman, Patterson, "Roofline", CACM 2009.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch

from dynattn.kernels import cpu
from dynattn.lab.bench import cuda
from dynattn.lab.bench.cases import DTYPES, Workload
from dynattn.lab.timing import interleaved

_COPY_BYTES = 1 << 28  # eight times a large L3, so that the copy goes through memory
_SIZES = 512, 2048  # sizes of a matrix product on a CPU; the larger is taken where the smaller takes hardly any time
_PRODUCT, _GPU_COPY_BYTES = 8192, 1 << 30  # a product that fills any GPU, and a copy of twenty times a large L2 cache


@dataclass(frozen=True)
class Roofline:
    """Measured limits.

    Attributes:
        flops: multiply-add peak in FLOP/s (a multiply-add is 2); None where the kernel library is not there.
        bandwidth: the bandwidth of memory in bytes/s, by a copy: read plus written.
        isa: instruction set of ``flops``; on a GPU ``bfloat16``, of a large matrix product through torch.
        threads: the number of threads that both were measured with; 0 on a GPU.
        products: FLOP/s of a large matrix product through torch, by dtype; empty in older records.
    """

    flops: float | None
    bandwidth: float
    isa: str | None
    threads: int
    products: dict[str, float] = field(default_factory=dict)

    def peak(self, dtype: str) -> float | None:
        """The most multiply-adds a second that were measured for operands of a dtype; None where none were.

        On a CPU numbers of 16 bits may be widened to float32 and multiplied there, so that ``flops`` counts as well.
        """
        own = self.products.get(dtype)
        if self.threads:
            return max(filter(None, (own, self.flops)), default=None)
        return own or (self.flops if DTYPES[dtype].itemsize == 2 else None)  # a GPU's ``flops`` is bfloat16's

    def attainable(self, intensity: float) -> float:
        """FLOP/s at ``intensity`` FLOPs a byte."""
        by_memory = intensity * self.bandwidth
        return by_memory if self.flops is None else min(self.flops, by_memory)

    def or_higher(self, other: Roofline) -> Roofline:
        """The higher value of each limit, since a disturbance can only lower a measurement."""
        flops = max(filter(None, (self.flops, other.flops)), default=None)
        every = self.products | other.products
        products = {dtype: max(each.products.get(dtype, 0.0) for each in (self, other)) for dtype in every}
        return replace(self, flops=flops, bandwidth=max(self.bandwidth, other.bandwidth), products=products)


def roofline(seconds: float = 0.5, device: str = "cpu", dtypes: Collection[str] = ()) -> Roofline:
    """Measure, on a CPU with the current number of threads.

    Args:
        seconds: how long to measure each limit.
        device: ``cpu`` or ``cuda``.
        dtypes: the dtypes of which a matrix product is measured.
    """
    if device == "cuda":
        return replace(_of_gpu(seconds), products={dtype: _product_on_gpu(dtype, seconds) for dtype in dtypes})
    threads = torch.get_num_threads()
    if cpu.unavailable_reason() is None:
        isa = cpu.best_isa()
        # the best of three, since other programs can only slow it down
        flops = max(cpu.fma_peak(isa, threads, seconds / 3) for _ in range(3))
    else:
        isa = flops = None
    return Roofline(
        flops, _bandwidth(seconds), isa, threads, {dtype: _product(DTYPES[dtype], seconds) for dtype in dtypes}
    )


def _of_gpu(seconds: float) -> Roofline:
    """A matrix product of ``_PRODUCT`` cubed on random bfloat16, and a copy in the device's memory."""
    a, b = (torch.randn(_PRODUCT, _PRODUCT, device=cuda.DEVICE).bfloat16() for _ in range(2))
    source = torch.zeros(_GPU_COPY_BYTES, dtype=torch.uint8, device=cuda.DEVICE)
    target, product = torch.empty_like(source), torch.empty_like(a)
    timings = interleaved(
        {"product": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)},
        seconds=2 * seconds, waited=lambda: None, elapsed=cuda.elapsed,
    )  # fmt: skip
    fastest = {name: min(timing.samples) for name, timing in timings.items()}
    return Roofline(2 * _PRODUCT**3 / fastest["product"], 2 * _GPU_COPY_BYTES / fastest["copy"], "bfloat16", 0)


def _product(dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of the fastest product seen. Without instructions for 16 bits it is slow, and is not waited for."""
    best, took = 0.0, 0.0
    for size in _SIZES:
        a, b = (torch.randn(size, size, device="cpu").to(dtype) for _ in range(2))
        end = time.perf_counter() + seconds / len(_SIZES)
        while True:
            start = time.perf_counter()
            torch.mm(a, b)
            stop = time.perf_counter()
            took = stop - start
            best = max(best, 2 * size**3 / took)
            if stop >= end:
                break
        if took > seconds / 100:
            break
    return best


def _product_on_gpu(dtype: str, seconds: float) -> float:
    with cuda.precision(Workload(1, 1, 1, dtype=dtype)):
        a, b = (torch.randn(_PRODUCT, _PRODUCT, device=cuda.DEVICE).to(DTYPES[dtype]) for _ in range(2))
        product = torch.empty_like(a)
        timing = interleaved(
            {"product": lambda: torch.mm(a, b, out=product)},
            seconds=seconds, waited=lambda: None, elapsed=cuda.elapsed,
        )["product"]  # fmt: skip
    return 2 * _PRODUCT**3 / min(timing.samples)


def _bandwidth(seconds: float) -> float:
    source = torch.zeros(_COPY_BYTES // 4, device="cpu")
    target = torch.zeros_like(source)
    timing = interleaved({"copy": lambda: target.copy_(source)}, seconds=seconds)["copy"]
    return 2 * _COPY_BYTES / min(timing.samples)
