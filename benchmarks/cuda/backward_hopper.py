"""What bounds the wgmma backward: products, shared memory, device memory, instructions. Needs no device.

    python benchmarks/cuda/backward_hopper.py --output benchmarks/results/cuda/backward-hopper.json

All for 64 queries by 128 keys and one multiprocessor. Products, shared memory and sums follow from the tiles, as
docs/kernels/cuda-backward.md has them, and from published rates; instructions, registers and spills are counted in
machine code for sm_90a (NVRTC, cuobjdump and nvdisasm must be there). The dense figure is that of the products of
five 64 x 128 tiles, as FlashAttention-3 computes them.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from instructions import disassembled, loop, spills

from dynattn.kernels.cuda import loader
from dynattn.kernels.cuda.variants import PATTERNS, WGMMA_HEAD_DIMS
from dynattn.kernels.cuda.variants_backward import WgmmaBackwardVariant
from dynattn.lab.machine import machine
from dynattn.lab.records import write_json

ARCH = "sm_90a"
QUERIES, KEYS, UNIT = 64, 128, 64
DENSE, SPARSE, SHARED_BYTES = 2048, 4096, 128  # multiply-adds and bytes a cycle


def bounds(head_dim: int) -> dict:
    """Cycles of products and of shared memory, bytes of device memory (or L2 cache)."""
    units, tile, pairs = KEYS // UNIT, QUERIES * head_dim * 2, QUERIES * UNIT * 2
    share = KEYS / WgmmaBackwardVariant("bfloat16", head_dim, 1, 2).key_tile  # of a block's keys
    queries, sums = 2 * tile * share, QUERIES * head_dim * 4 * share  # Q and dO; dQ in float32
    shared = {
        "scores and their gradients": 2 * units * (tile + tile),  # A and B
        "keys' and values' gradients": 2 * units * (pairs + tile),
        "queries' gradients": units * tile,  # B; A is in registers
        "P and dS stored": 2 * units * pairs,
        "dQ from one warpgroup to the other": 2 * sums,
        "copies": queries,
    }
    product = QUERIES * KEYS * head_dim
    return {
        "products": 4 * product / DENSE + product / SPARSE, "dense_products": 5 * product / DENSE,
        "shared_memory": sum(shared.values()) / SHARED_BYTES, "shared_bytes": shared,
        "l2_bytes": sums + queries,
    }  # fmt: skip


def count(variant: WgmmaBackwardVariant) -> dict:
    """Registers, spills, and the loop's instructions: of one warp, for the keys of its warpgroup."""
    made = loader.compile_variant(variant, ARCH, cached=False)
    body = loop(disassembled(made.cubin))
    keys = variant.key_tile // variant.groups
    return spills(made.log) | {
        "loop": len(body), "keys": keys,
        "loop_spilled": sum(bool(re.search(r"\b(LDL|STL)\b", text)) for text in body),
        "products": sum("HGMMA" in text for text in body), "instructions": len(body) * KEYS // keys,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    record = {"machine": machine(), "nvrtc": loader.nvrtc_version(), "arch": ARCH}
    record["bounds"] = {head_dim: bounds(head_dim) for head_dim in WGMMA_HEAD_DIMS}
    record["variants"] = []
    for head_dim in WGMMA_HEAD_DIMS:
        for n, m in PATTERNS:
            variant = WgmmaBackwardVariant("bfloat16", head_dim, n, m)
            record["variants"].append({"kernel": variant.name_expression} | count(variant))
            print(record["variants"][-1], flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, record)


if __name__ == "__main__":
    main()
