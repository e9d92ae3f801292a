"""Does the hardware read fragments and metadata as the kernels assume? Single products, decoded on the host.

Lane 4g + t of a warp holds, of the 16 × 32 sparse operand, in register 2h + r the two kept elements of row g + 8r among
columns 16h + 4t … 16h + 4t + 3. Which two they are stands in the metadata of lane 4g + 2·selector + h: nibble t for
row g, nibble 4 + t for row g + 8; its low bits are the first index, its high bits the second. On Hopper a warpgroup's
product is the same four times, 16 rows a warp, with its other operand in shared memory; and each instruction on numbers
is asked for what IEEE 754 leaves open.
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
WARPGROUP_SOURCE = '#include "probe_warpgroup.cu"'
WARPGROUP_CASES = (("BFloat16", 64, 0), ("Float16", 128, 1))  # element, columns of V, selector
_WARPGROUP = 128  # threads
_NAN = 0x7FFFFFFF  # the only one that an instruction on float32 makes
_NUMBERS = (
    (-math.inf, 1.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, -math.inf), (1e-40, 1e-40), (0.0, -0.0), (1.0, 2.0),
    (3.14159, -2.71828), (-1.5, 65519.0), (1.00048828125, 1.00390625), (-0.3, 65520.0), (1e38, 1e-8),
)  # fmt: skip


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
    warpgroups = [_warpgroup(*case, generator) for case in WARPGROUP_CASES] if architecture() == "sm_90a" else []
    return [*products, *warpgroups, _signs(), _numbers()]


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


def warpgroup_expression(element: str, columns: int, selector: int) -> str:
    """The instantiation."""
    return f"dynattn::probe_warpgroup<dynattn::{element}, {columns}, {selector}>"


def warpgroup_inputs(element: str, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Registers of A, nibbles of its sparse half, K and V: [128, 8, 2], [128, 8], [128, 64] and [64, columns]."""
    dtype = torch.bfloat16 if element == "BFloat16" else torch.float16
    a, key, value = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((_WARPGROUP, 8, 2), (128, 64), (64, columns))
    )
    return a, torch.tensor(_ORDERED)[torch.randint(6, (_WARPGROUP, 8), generator=generator)], key, value


def warpgroup_tiles(key: Tensor, value: Tensor) -> Tensor:
    """K and V as the kernel is given them: V in panels of 64 columns."""
    return torch.cat([key.flatten(), value.unflatten(1, (-1, 64)).transpose(0, 1).flatten()])


def warpgroup_expected(a: Tensor, nibbles: Tensor, key: Tensor, value: Tensor, selector: int) -> tuple[Tensor, Tensor]:
    """Scores [64, 128] and sums [64, columns], float64."""
    lanes = torch.arange(32)
    g, t = lanes // 4, lanes % 4
    query, sums = torch.zeros(64, 16, dtype=torch.float64), []
    for warp in range(4):
        own = slice(32 * warp, 32 * warp + 32)
        for j in range(4):
            for i in range(2):
                query[16 * warp + g + 8 * (j % 2), 2 * t + 8 * (j // 2) + i] = a[own][:, j, i].double()
        for first in range(0, value.shape[1], 8):  # as a warp's product with 8 columns
            rows = torch.stack([8 * j + 2 * t + i for j in range(4) for i in range(2)], 1)
            b = value[32 + rows, (first + g).unsqueeze(1)].view(32, 4, 2)
            sums.append(expected(a[own, 4:], b, nibbles[own], selector))
    columns = value.shape[1] // 8
    by_warp = [torch.cat(sums[columns * warp : columns * (warp + 1)], 1) for warp in range(4)]
    return query @ key[:, 16:32].double().T, torch.cat(by_warp)


def warpgroup_matrix(accumulators: Tensor) -> Tensor:
    """[128 threads, n / 2 registers] as [64, n]: a warp's 16 rows as :func:`matrix` has them, by 8 columns."""
    warps = accumulators.view(4, 32, -1, 4)
    return torch.cat([torch.cat([matrix(warp[:, n].contiguous()) for n in range(warp.shape[1])], 1) for warp in warps])


def _warpgroup(element: str, columns: int, selector: int, generator: torch.Generator) -> dict:
    a, nibbles, key, value = warpgroup_inputs(element, columns, generator)
    found = _run_warpgroup(element, selector, a, nibbles, key, value)
    wanted = warpgroup_expected(a, nibbles, key, value, selector)
    errors = [(mine.double() - right).abs().max().item() for mine, right in zip(found, wanted, strict=True)]
    # the choice takes -0 < +0 for a difference: of a query of zeros no score may be -0
    a[:, :4] = 0.0
    zeros, _ = _run_warpgroup(element, selector, a, nibbles, -key.abs(), value)
    negative = int(zeros.signbit().sum())
    return {
        "warpgroup": element, "columns": columns, "selector": selector, "error": errors[0], "sparse_error": errors[1],
        "negative_zeros": negative, "right": max(errors) < 1e-4 and negative == 0,
    }  # fmt: skip


def _run_warpgroup(
    element: str, selector: int, a: Tensor, nibbles: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    columns = value.shape[1]
    name, tiles = warpgroup_expression(element, columns, selector), warpgroup_tiles(key, value)
    symbol, cubin, _ = device.compile_cubin(WARPGROUP_SOURCE, architecture(), name)
    scores, sums = (torch.full((_WARPGROUP, n // 2), math.nan, device="cuda") for n in (128, columns))
    kernel = device.Kernel(symbol, cubin, tiles.numel() * 2 + 1024)
    kernel(1, _WARPGROUP, a.cuda(), words(nibbles).cuda(), tiles.cuda(), scores, sums)
    return warpgroup_matrix(scores.cpu()), warpgroup_matrix(sums.cpu())


def _numbers() -> dict:
    pairs = torch.zeros(32, 2)
    pairs[: len(_NUMBERS)] = torch.tensor(_NUMBERS)
    bits = torch.zeros(32, 8, dtype=torch.int32, device="cuda")
    a, b = (x.contiguous().cuda() for x in pairs.T)
    _kernel("dynattn::probe_numbers")(1, 32, a, b, bits)
    wrong = wrong_numbers(pairs[: len(_NUMBERS)], bits[: len(_NUMBERS)].cpu())
    return {"wrong_numbers": wrong, "right": not wrong}


def wrong_numbers(pairs: Tensor, bits: Tensor) -> list[str]:
    """Which instructions gave something else than the kernels take for granted, with what."""
    x, y = pairs.T.contiguous()
    nan, either = x.isnan(), x.isnan() | y.isnan()
    flushed = x.where(x.abs() >= torch.finfo(torch.float32).tiny, 0.0 * x)
    tf32 = ((x.view(torch.int32) + 0x1000) & ~0x1FFF).masked_fill(nan, _NAN)
    same, denormal = x == y, flushed != x
    # of +0 and -0 either is the larger; and it does not matter what TF32 makes of denormal numbers
    exact = {
        "max.NaN": (2, torch.maximum(x, y).view(torch.int32).masked_fill(either, _NAN), same),
        "min.NaN": (3, torch.minimum(x, y).view(torch.int32).masked_fill(either, _NAN), same),
        "max": (4, torch.fmax(x, y).view(torch.int32), same),
        "cvt.bf16x2": (5, _halves(x.bfloat16(), y.bfloat16()), None),
        "cvt.f16x2": (6, _halves(x.half(), y.half()), None),
        "cvt.rna.tf32": (7, tf32, denormal & ~nan),
    }
    wrong = [
        f"{name} of {pairs[i].tolist()}: {int(bits[i, at]) & 0xFFFFFFFF:#x}"
        for name, (at, want, any_will_do) in exact.items()
        for i in range(len(pairs))
        if bits[i, at] != want[i] and not (any_will_do is not None and any_will_do[i])
    ]
    for name, at, want in (("ex2", 0, x.exp2()), ("lg2", 1, flushed.log2())):
        got = bits[:, at].contiguous().view(torch.float32)
        close = torch.isclose(got, want, rtol=5e-7, atol=5e-7, equal_nan=True)
        wrong += [f"{name} of {x[i].item()}: {got[i].item()}" for i in range(len(pairs)) if not close[i]]
    return wrong


def _halves(low: Tensor, high: Tensor) -> Tensor:
    """Two 16-bit numbers a word; NaN as the hardware writes it."""
    parts = [(part.view(torch.int16).int() & 0xFFFF).masked_fill(part.isnan(), 0x7FFF) for part in (low, high)]
    return parts[0] | parts[1] << 16


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
    """Architecture of the current device, as ``sm_90a``."""
    from dynattn.kernels.cuda.driver import device as describe

    return describe(torch.cuda.current_device()).arch
