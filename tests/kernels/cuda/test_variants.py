"""The kernels' machine code, for each architecture: it is made, it uses sparse tensor cores, it keeps to its
registers, and ptxas has nothing to say.

All of the instantiations would take hours, so a cover is compiled: every single choice (say, head_dim 96) stands in one
of them, for each architecture, for those with dropout, and for looking at the machine code, which takes as long as
making it. With ``-m sweep`` every pair of choices does (head_dim 96 with an additive mask), for ``sm_80`` and for the
``wgmma`` kernel. ``dynattn warmup --all`` compiles the rest.
"""

import itertools
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pytest

from dynattn.kernels.cuda.loader import Compiled, compile_variant, missing
from dynattn.kernels.cuda.variants import Variant, variants

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"needs NVRTC: {missing()}")

_SPARSE = {"mma": "HMMA.SP.16832.F32", "wgmma": "HGMMA.SP"}
_SPARSE_TF32 = "HMMA.SP.16816.F32.TF32"
_LITTLE = 16  # bytes that ptxas puts outside of registers, of what the loop only reads, to fit one more block
_STACK_AT_MOST = 256  # bytes of a thread that may spill where spilling is allowed: a quarter of its registers


V = TypeVar("V", bound="DataclassInstance")


def cover(pool: Iterable[V], strength: int) -> list[V]:
    """Few variants in which each combination of ``strength`` choices that ``pool`` has stands at least once."""
    combinations = {
        variant: frozenset(itertools.combinations(enumerate(astuple(variant)), strength)) for variant in pool
    }
    missing_yet, chosen = set().union(*combinations.values()), []
    while missing_yet:
        best = max(combinations, key=lambda variant: len(combinations[variant] & missing_yet))
        chosen.append(best)
        missing_yet -= combinations[best]
    return chosen


MMA = [variant for variant in variants() if variant.kernel == "mma" and not variant.dropout]
DROPOUT = [variant for variant in variants() if variant.dropout]
WGMMA = [variant for variant in variants() if variant.kernel == "wgmma"]
CASES = [
    *((variant, "sm_80") for variant in cover(MMA, 1)),
    *((variant, "sm_89") for variant in cover(MMA, 1)[:2]),
    *((variant, "sm_90a") for variant in cover(MMA, 1)[:2]),
    *((variant, "sm_80") for variant in cover(DROPOUT, 1)),
    *((variant, "sm_90a") for variant in cover(DROPOUT, 1)[:1]),
    *((variant, "sm_90a") for variant in cover(WGMMA, 1)),
]
PAIRS = [
    *((variant, arch) for arch in ("sm_89", "sm_90a") for variant in cover(MMA, 1)),
    *((variant, "sm_80") for variant in cover(MMA, 2)),
    *((variant, "sm_90a") for variant in cover(WGMMA, 2)),
]
SWEPT = [pytest.param(case, marks=pytest.mark.sweep) for case in PAIRS if case not in CASES]


SHOWN = {
    *((variant, "sm_89") for variant in cover(MMA, 1)[:2]),
    *((variant, "sm_90a") for variant in cover(MMA, 1)[:2]),
    *[case for case in CASES if case[0].kernel == "wgmma"][:4],
}


def never_spills(variant: Variant) -> bool:
    """Where the design has registers for everything; elsewhere a few values may go to memory."""
    if variant.kernel == "wgmma":
        return variant.mask == "none" and not (variant.aux and variant.head_dim == 128)
    return variant.head_dim <= 64 and not variant.aux and (variant.mask == "none" or not variant.band)


class Made(NamedTuple):
    """Machine code, and its text for the cases in SHOWN, where there is a tool."""

    compiled: Compiled
    text: str | None


@cache
def made(case: tuple[Variant, str]) -> Made:
    compiled = compile_variant(*case, cached=False)
    return Made(compiled, disassembled(compiled.cubin) if case in SHOWN else None)


def disassembled(cubin: bytes) -> str | None:
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"  # where the packages put the tools
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, site.glob("*/bin"))])
    tool = shutil.which("cuobjdump", path=path)
    if tool is None or shutil.which("nvdisasm", path=path) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run(
            [tool, "-sass", file], check=True, capture_output=True, text=True, env=os.environ | {"PATH": path}
        )
    return done.stdout


def name(case: tuple[Variant, str]) -> str:
    return f"{case[1]}: {case[0].name_expression}"


@pytest.mark.parametrize("case", [*CASES, *SWEPT], ids=name)
def test_it_keeps_to_its_registers_and_the_compiler_has_no_complaint(case: tuple[Variant, str]) -> None:
    log = made(case).compiled.log
    stack, stores, loads = map(
        int, re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)[0]
    )
    if never_spills(case[0]):
        assert stack <= (0 if case[0].kernel == "wgmma" else _LITTLE), (stores, loads)
    assert stack <= _STACK_AT_MOST
    if case[0].kernel == "wgmma":  # setmaxnreg deals these out anew: with fewer to deal, its .inc would wait for ever
        assert "Used 168 registers" in log
    # C7508: setmaxnreg ignored; C7510 to C7519: wgmma serialised, or fenced by ptxas, which says so as mere information
    complaints = [line for line in log.splitlines() if re.search(r"warning|serializ|C75\d\d", line, re.IGNORECASE)]
    assert not complaints


@pytest.mark.parametrize("case", sorted(SHOWN, key=name), ids=name)
def test_the_machine_code_multiplies_sparse(case: tuple[Variant, str]) -> None:
    code = made(case).text
    if code is None:
        pytest.skip("needs cuobjdump and nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
    assert (_SPARSE_TF32 if case[0].dtype == "tf32" else _SPARSE[case[0].kernel]) in code
    if case[0].kernel == "wgmma":
        assert "UTMALDG" in code  # the copy engine
