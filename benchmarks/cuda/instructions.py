"""What dropout adds to the kernels' loops: instructions, registers and spills in their machine code. Needs no device.

    python benchmarks/cuda/instructions.py --output benchmarks/results/cuda/dropout-instructions.json

Needs NVRTC, and cuobjdump with nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm). A loop is counted
with all that stands in it, edges and rescaling too; of loops inside it, one turn.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from dynattn.kernels.cuda import loader
from dynattn.kernels.cuda.variants import PATTERNS, Variant
from dynattn.kernels.cuda.variants_backward import BackwardVariant
from dynattn.lab.machine import machine
from dynattn.lab.records import write_json

ARCH = "sm_80"
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);")
_JUMP = re.compile(r"\bBRA\b.*?0x([0-9a-f]+)")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def variants() -> Iterator[Variant | BackwardVariant]:
    """Without dropout: no mask, no window, as many queries a warp as fit."""
    for n, m in PATTERNS:
        for head_dim in (64, 128, 256):
            yield Variant("mma", "bfloat16", head_dim, n, m, row_tiles=1 if head_dim == 256 else 2)
        yield Variant("mma", "tf32", 64, n, m)
    for n, m in PATTERNS:
        for head_dim in (64, 128, 256):
            yield BackwardVariant("bfloat16", head_dim, n, m, row_tiles=2 if head_dim == 64 else 1)


def count(variant: Variant | BackwardVariant) -> dict:
    """Registers, bytes outside of them and instructions of the loop of one variant."""
    made = loader.compile_variant(variant, ARCH, cached=False)
    (registers,) = re.findall(r"Used (\d+) registers", made.log)
    return {"registers": int(registers)} | spills(made.log) | {"loop": loop_length(disassembled(made.cubin))}


def spills(log: str) -> dict[str, int]:
    """What the compiler of a single kernel says of bytes outside of registers."""
    (found,) = _SPILLS.findall(log)
    return dict(zip(("stack", "spill_stores", "spill_loads"), map(int, found), strict=True))


def loop_length(code: str) -> int:
    """Instructions of the smallest loop that holds all sparse products."""
    return len(loop(code))


def loop(code: str) -> list[str]:
    """That loop, instruction by instruction."""
    lines = _INSTRUCTION.findall(code)
    place = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    jumps = ((i, place.get(int(found[1], 16), i)) for i, (_, text) in enumerate(lines) if (found := _JUMP.search(text)))
    sparse = [i for i, (_, text) in enumerate(lines) if "MMA.SP" in text]
    around = ((start, end) for end, start in jumps if start <= sparse[0] and sparse[-1] <= end and start < end)
    first, last = min(around, key=lambda ends: ends[1] - ends[0])
    return [text for _, text in lines[first : last + 1]]


def disassembled(cubin: bytes) -> str:
    """The machine code in words."""
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"  # where the packages put the tools
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, site.glob("*/bin"))])
    tool = shutil.which("cuobjdump", path=path)
    if tool is None:
        raise SystemExit("cuobjdump is not on the PATH; pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command, environment = [tool, "-sass", file.name], os.environ | {"PATH": path}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    records = []
    for variant in variants():
        without, dropping = count(variant), count(replace(variant, dropout=True))
        records.append({"kernel": variant.name_expression, "without": without, "with_dropout": dropping})
        print(variant.name_expression, without, dropping, sep="\n  ", flush=True)
    record = {"machine": machine(), "nvrtc": loader.nvrtc_version(), "arch": ARCH, "variants": records}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, record)


if __name__ == "__main__":
    main()
