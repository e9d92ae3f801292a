"""The fused C++ kernels, called through ctypes.

The library stands beside this file, where the build installs it, and is loaded at its first use (``loader.py``). It
takes plain pointers and strides (``dynattn_cpu.h``), so one build serves every version of torch and Python. Its loops
run on torch's own threads: the kernels are given ``GOMP_parallel`` of the OpenMP runtime that torch has loaded.

What callers of attention need is named here. Linear layers are called through ``linear_calls``, and what is asked of a
tile engine by itself is in ``isas``.
"""

from dynattn.kernels.cpu.again import (
    forward,
    forward_again,
    nm_backward_again,
    prepare_block_forward,
    prepare_nm_backward,
    prepare_nm_forward,
    prepare_row_forward,
    prepare_skip_forward,
)
from dynattn.kernels.cpu.attention_calls import (
    MAX_HEAD_DIM,
    choose_blocks,
    nm_backward,
    nm_forward,
    row_forward,
    skip_forward,
)
from dynattn.kernels.cpu.isas import TILE_ENGINES, best_isa, fma_peak, isa_available, isa_refusal, nm_isa, row_isa
from dynattn.kernels.cpu.loader import is_available, unavailable_reason
from dynattn.kernels.cpu.texts import PAGE_KEYS, PreparedTexts, nm_texts, nm_texts_again, prepare_nm_texts

__all__ = [
    "MAX_HEAD_DIM", "PAGE_KEYS", "TILE_ENGINES", "PreparedTexts", "best_isa", "choose_blocks", "fma_peak", "forward",
    "forward_again", "is_available", "isa_available", "isa_refusal", "nm_backward", "nm_backward_again", "nm_forward",
    "nm_isa", "nm_texts", "nm_texts_again", "prepare_block_forward", "prepare_nm_backward", "prepare_nm_forward",
    "prepare_nm_texts", "prepare_row_forward", "prepare_skip_forward", "row_forward", "row_isa", "skip_forward",
    "unavailable_reason",
]  # fmt: skip
