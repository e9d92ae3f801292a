"""vLLM is compared with itself nowhere: the attention that takes part is the one asked for."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def stand_in(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """A vLLM that resolves its backend on CPUs to such a class."""
    path = "vllm.v1.attention.backends.registry"
    for end in range(1, path.count(".") + 2):
        name = ".".join(path.split(".")[:end])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module, _, name = backend.rpartition(".")
    found = type(name, (), {"__module__": module})
    vars(sys.modules["vllm"])["LLM"] = SimpleNamespace
    enum = SimpleNamespace(CPU_ATTN=SimpleNamespace(get_class=lambda: found))
    vars(sys.modules[path])["AttentionBackendEnum"] = enum


@pytest.mark.parametrize("method", ["", "dense", "nm-2-4"])
@pytest.mark.parametrize("ours", [True, False])
def test_an_engine_attends_as_it_was_asked_to(
    script: Any, monkeypatch: pytest.MonkeyPatch, method: str, ours: bool
) -> None:
    backends = "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend", "dynattn.integrations.vllm.backend.Backend"
    stand_in(monkeypatch, backends[ours])
    monkeypatch.setenv("DYNATTN_VLLM", method)
    engine = script("vllm_tokens").engine
    if ours == bool(method):
        assert engine("m", "float32").model == "m"
        return
    with pytest.raises(SystemExit, match=f"must be .*'s own with DYNATTN_VLLM='{method}': got {backends[ours]}"):
        engine("m", "float32")
