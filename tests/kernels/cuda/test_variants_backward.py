"""The backward kernels' machine code: it is made, it keeps to its registers, and dQ comes from sparse tensor cores.

Every other case of a cover is compiled always, all of them with ``-m sweep``.
"""

import re
from dataclasses import replace

import pytest

from dynattn.kernels.cuda.loader import compile_variant, missing
from dynattn.kernels.cuda.variants import Variant
from dynattn.kernels.cuda.variants_backward import (
    AnyBackwardVariant,
    BackwardVariant,
    QueryVariant,
    RowTermsVariant,
    WgmmaBackwardVariant,
    main_variants,
    small_variants,
    wgmma_variants,
)
from tests.covering import part
from tests.kernels.cuda.test_variants import cover, disassembled

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"needs NVRTC: {missing()}")

# bytes of a thread that may lie outside its registers: of 1020; of the wgmma kernel with 128 columns; of a forward
_LITTLE, _AT_MOST, _NEXT_TO_NOTHING, _CROWDED = 128, 448, 112, 640
WITHOUT = [variant for variant in main_variants() if not variant.dropout]
DROPOUT = [variant for variant in main_variants() if variant.dropout]
PLAIN = BackwardVariant("bfloat16", 64, 1, 2, row_tiles=2)
PLAIN_WGMMA = WgmmaBackwardVariant("bfloat16", 128, 1, 2)
CASES: list[tuple[AnyBackwardVariant, str]] = [
    *((variant, "sm_80") for variant in cover(WITHOUT, 1)),
    *((variant, "sm_80") for variant in cover(DROPOUT, 1)),
    (replace(PLAIN, dropout=True), "sm_80"),
    (PLAIN, "sm_80"),
    (PLAIN, "sm_89"),
    (PLAIN, "sm_90a"),
    (RowTermsVariant("bfloat16"), "sm_80"),
    (QueryVariant("float16"), "sm_90a"),
    (PLAIN_WGMMA, "sm_90a"),
    *((variant, "sm_90a") for variant in cover(wgmma_variants(), 1)),
    (replace(PLAIN_WGMMA, head_dim=64, band=True), "sm_90a"),
]


def most_spills(variant: AnyBackwardVariant) -> int:
    """Little where all that the loop changes has a register, and what lies outside is what it only reads."""
    if isinstance(variant, WgmmaBackwardVariant):
        return _NEXT_TO_NOTHING if variant.head_dim == 128 else _AT_MOST
    return _LITTLE if _keeps_what_it_changes(variant) else _AT_MOST


def _keeps_what_it_changes(variant: AnyBackwardVariant) -> bool:
    plain = isinstance(variant, BackwardVariant) and variant.mask == "none" and not variant.band
    return not isinstance(variant, BackwardVariant) or (plain and variant.head_dim <= 64)


def name(case: tuple[AnyBackwardVariant, str]) -> str:
    return f"{case[1]}: {case[0].name_expression}"


@pytest.mark.parametrize("case", part([(case,) for case in CASES], 2, lambda case: name(case[0])))
def test_it_keeps_to_its_registers_and_multiplies_sparse(case: tuple[AnyBackwardVariant, str]) -> None:
    variant, arch = case
    made = compile_variant(variant, arch, cached=False)
    (stack,) = map(int, re.findall(r"(\d+) bytes stack frame", made.log)[:1])
    assert stack <= most_spills(variant)
    if isinstance(variant, WgmmaBackwardVariant):  # setmaxnreg deals these out anew: with fewer, its .inc would wait
        assert "Used 168 registers" in made.log
    # C7508: setmaxnreg ignored; C7510 to C7519: wgmma serialised, or fenced by ptxas
    assert not [line for line in made.log.splitlines() if re.search(r"warning|serializ|C75\d\d", line, re.IGNORECASE)]
    if variant not in (PLAIN, PLAIN_WGMMA):
        return
    code = disassembled(made.cubin)
    if code is None:
        pytest.skip("needs cuobjdump and nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
    if variant == PLAIN_WGMMA:
        assert "HGMMA.SP.64x128x32.F32" in code
        assert re.search(r"HGMMA\.64x128x16\.F32.*tnspA\.tnspB", code)
        assert "UTMALDG" in code
        return
    assert "HMMA.SP.16832.F32" in code
    assert "HMMA.16816.F32" in code
    assert not re.search(r"\bRED\b|\bATOM", code)  # no atomics: the same bits in every run


def test_the_forward_of_training_with_kept_mass_and_a_window() -> None:
    """Its backward is by wgmma, so it is too, though it does not fit in registers."""
    variant = Variant("wgmma", "bfloat16", 128, 2, 4, aux=True, band=True, stride=16)
    log = compile_variant(variant, "sm_90a", cached=False).log
    (stack,) = map(int, re.findall(r"(\d+) bytes stack frame", log)[:1])
    assert 0 < stack <= _CROWDED
    assert "Used 168 registers" in log
    assert not re.search(r"warning|serializ|C75\d\d", log, re.IGNORECASE)


def test_every_variant_has_a_name_of_its_own() -> None:
    every = [*main_variants(), *wgmma_variants(), *small_variants()]
    assert len({variant.name_expression for variant in every}) == len(every)
