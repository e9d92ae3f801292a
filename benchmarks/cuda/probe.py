"""Does the hardware read fragments and metadata as the kernels assume? One sparse product, decoded on the host.

Lane 4g + t of a warp holds, of the 16 × 32 sparse operand, in register 2h + r the two kept elements of row g + 8r among
columns 16h + 4t … 16h + 4t + 3. Which two they are stands in the metadata of lane 4g + 2·selector + h: nibble t for
row g, nibble 4 + t for row g + 8; its low bits are the first index, its high bits the second.
"""

from __future__ import annotations

import math

import device
import torch
from torch import Tensor

_ORDERED = (0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110)  # pairs of indices, the first the smaller
_DIFFERENCES = ((math.inf, math.inf), (-math.inf, -math.inf), (math.nan, 1.0), (1.0, 1.0), (1.0, 2.0), (-math.inf, 0.0))
_NEGATIVE = [False, False, False, False, True, True]  # what the choice of 2:4 takes for granted
SOURCE = '#include "probe.cu"'
CASES = tuple((element, selector) for element in ("BFloat16", "Float16", "TensorFloat32") for selector in (0, 1))
_FIRST, _SECOND = 0b0100, 0b1110  # nibbles of TF32: which of two is stored


def expression(element: str, selector: int) -> str:
    """The instantiation."""
    return f"dynattn::probe_sparse_product<dynattn::{element}, {selector}>"


def expected(a: Tensor, b: Tensor, nibbles: Tensor, selector: int) -> Tensor:
    """The product, float64, [16, 8].

    Args:
        a: [32 lanes, 4 registers, 2 halves].
        b: [32 lanes, 4 registers, 2 halves]; register j of lane 4g + t holds rows 8j + 2t and + 1 of column g.
        nibbles: [32 lanes, 8].
        selector: which lanes' metadata count.
    """
    sparse, dense = torch.zeros(16, 32, dtype=torch.float64), torch.zeros(32, 8, dtype=torch.float64)
    for g in range(8):
        for t in range(4):
            lane = 4 * g + t
            for j in range(4):
                dense[8 * j + 2 * t : 8 * j + 2 * t + 2, g] = b[lane, j].double()
            for h in range(2):
                for r in range(2):
                    nibble = int(nibbles[4 * g + 2 * selector + h, 4 * r + t])
                    for half, index in enumerate((nibble & 3, nibble >> 2)):
                        sparse[g + 8 * r, 16 * h + 4 * t + index] = a[lane, 2 * h + r, half].double()
    return sparse @ dense


def expected_tf32(a: Tensor, b: Tensor, nibbles: Tensor, selector: int) -> Tensor:
    """The product of TF32, float64, [16, 8]: register 2h + r of lane 4g + t is one of columns 8h + 2t and + 1.

    Args:
        a: [32 lanes, 4 registers].
        b: [32 lanes, 4 registers]; register j of lane 4g + t is row 4j + t of column g.
        nibbles, selector: as for :func:`expected`.
    """
    sparse, dense = torch.zeros(16, 16, dtype=torch.float64), torch.zeros(16, 8, dtype=torch.float64)
    for g in range(8):
        for t in range(4):
            lane = 4 * g + t
            dense[t::4, g] = b[lane].double()
            for h in range(2):
                for r in range(2):
                    nibble = int(nibbles[4 * g + 2 * selector + h, 4 * r + t])
                    sparse[g + 8 * r, 8 * h + 2 * t + (nibble == _SECOND)] = a[lane, 2 * h + r].double()
    return sparse @ dense


def run() -> list[dict]:
    """One record a case: the largest error of the sparse product; then the signs of some differences."""
    generator = torch.Generator().manual_seed(0)
    products = (
        (_product_tf32 if element == "TensorFloat32" else _product)(element, selector, generator)
        for element, selector in CASES
    )
    return [*products, _signs()]


def _product(element: str, selector: int, generator: torch.Generator) -> dict:
    dtype = torch.bfloat16 if element == "BFloat16" else torch.float16
    a, b = (torch.randn(32, 4, 2, generator=generator).to(dtype) for _ in range(2))
    nibbles = torch.tensor(_ORDERED)[torch.randint(6, (32, 8), generator=generator)]
    c = torch.zeros(32, 4, device="cuda")
    _kernel(expression(element, selector))(1, 32, a.cuda(), b.cuda(), words(nibbles).cuda(), c)
    error = (matrix(c.cpu()).double() - expected(a, b, nibbles, selector)).abs().max().item()
    return {"element": element, "selector": selector, "error": error, "right": error < 1e-4}


def _product_tf32(element: str, selector: int, generator: torch.Generator) -> dict:
    a, b = (torch.randint(-64, 65, (32, 4), generator=generator).float() / 16 for _ in range(2))  # exact in TF32
    nibbles = torch.tensor((_FIRST, _SECOND))[torch.randint(2, (32, 8), generator=generator)]
    c = torch.zeros(32, 4, device="cuda")
    _kernel(expression(element, selector))(1, 32, a.cuda(), b.cuda(), words(nibbles).cuda(), c)
    error = (matrix(c.cpu()).double() - expected_tf32(a, b, nibbles, selector)).abs().max().item()
    return {"element": element, "selector": selector, "error": error, "right": error < 1e-4}


def _signs() -> dict:
    pairs = torch.zeros(32, 2)
    pairs[: len(_DIFFERENCES)] = torch.tensor(_DIFFERENCES)
    bits = torch.zeros(32, dtype=torch.int32, device="cuda")
    a, b = (x.contiguous().cuda() for x in pairs.T)
    _kernel("dynattn::probe_difference")(1, 32, a, b, bits)
    negative = (bits[: len(_DIFFERENCES)] < 0).tolist()
    return {"negative_differences": negative, "right": negative == _NEGATIVE}


def words(nibbles: Tensor) -> Tensor:
    """Metadata registers: [32 lanes, 8] nibbles as int32."""
    unsigned = (nibbles << (4 * torch.arange(8))).sum(1)
    return unsigned.where(unsigned < 1 << 31, unsigned - (1 << 32)).to(torch.int32)


def matrix(c: Tensor) -> Tensor:
    """[32 lanes, 4 registers] as [16, 8]: register 2r + i of lane 4g + t is row g + 8r, column 2t + i."""
    return c.view(8, 4, 2, 2).permute(2, 0, 1, 3).reshape(16, 8)


def _kernel(name: str) -> device.Kernel:
    symbol, cubin, _ = device.compile_cubin(SOURCE, architecture(), name)
    return device.Kernel(symbol, cubin)


def architecture() -> str:
    """Of the device at hand."""
    from dynattn.kernels.cuda.driver import device as describe

    return describe(torch.cuda.current_device()).arch
