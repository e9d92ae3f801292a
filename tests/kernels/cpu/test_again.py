"""The parts of arguments that calls made again are given apart."""

from __future__ import annotations

from dynattn.kernels.cpu import again
from dynattn.kernels.cpu.arguments import NM_BACKWARD, NM_FORWARD
from dynattn.kernels.cpu.packing import ADDRESSES
from tests.kernels.cpu.test_arguments import filled


def test_fields_laid_out_apart_are_those_of_the_whole() -> None:
    backward = filled(NM_BACKWARD, None) | {"d_key": 7, "grad_out_strides": (1, 2, 3)}
    backward |= {"d_query_strides": (4, 5, 6), "d_value_strides": (8, 9, 10)}
    apart = again._GRADIENT_ADDRESSES.pack(0, 0, 0, 7, 0, 0, 1, 2, 3) + again._STRIDES.pack(4, 5, 6, 0, 0, 0, 8, 9, 10)
    assert apart == NM_BACKWARD.pack(**backward)
    whole = NM_FORWARD.pack(**filled(NM_FORWARD, None) | {"key": 5, "logsumexp": 6})
    assert whole.startswith(ADDRESSES.pack(0, 5, 0, 0, 0, 6))
