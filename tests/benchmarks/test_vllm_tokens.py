"""vLLM is compared with itself nowhere, a run goes on after a stop, and its record becomes a table."""

from __future__ import annotations

import sys
from pathlib import Path
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


@pytest.fixture
def timing(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script with a record of its own, and engines whose n-th answers n."""
    module = script("vllm_tokens")
    monkeypatch.setattr(module, "RECORD", tmp_path / "vllm.json")
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0")
    calls: list[tuple[str, ...]] = []

    def child(model: str, method: str, *what: str) -> dict[str, float]:
        calls.append((method, *what))
        if len(calls) == 10:
            raise KeyboardInterrupt
        columns = [module.first_token(n) for n in (4096, 8192)] + [module.rate(n) for n in (1, 4, 16)]
        return {column: float(len(calls)) for column in columns}

    monkeypatch.setattr(module, "child", child)
    module.calls = calls
    return module


def test_a_run_goes_on_where_it_was_and_its_record_is_a_table(timing: Any) -> None:
    """Every engine once a round; the middle of three ratios, each within a round."""
    with pytest.raises(KeyboardInterrupt):
        timing.measure("folder/smol")
    timing.measure("folder/smol")
    timing.measure("folder/smol")
    assert len(timing.calls) == 1 + 3 * 2 * 3  # the one that was stopped again, and none twice
    assert [call[0] for call in timing.calls[:6]] == ["", "dense", "nm-1-2"] * 2
    page = timing.with_table(f"before\n{timing.START}\nold\n{timing.END}\nafter")
    assert "old" not in page
    lines = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in page.splitlines() if "×" in line
    }
    assert list(lines) == [f"{dtype}: {name}" for dtype in timing.DTYPES for name in timing.METHODS]
    assert lines["float32: vLLM's own"][0] == "7.0 s, 1.00×"  # the first, seventh and fourteenth
    assert lines["float32: dense"][:3] == ["8.0 s, 0.88×", "8.0 s, 0.88×", "8.0, 1.14×"]  # second, eighth, fifteenth
    with pytest.raises(ValueError, match="the page must hold"):
        timing.with_table("no place")


def test_a_prompt_may_be_as_long_as_the_model_reads(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token more is generated, for which vLLM wants room and a variable."""
    module, asked = script("vllm_tokens"), {}
    monkeypatch.setattr(module, "engine", lambda *_, **options: asked.update(options))
    monkeypatch.setattr(module, "generated", lambda _, prompts, new: asked.update(longest=len(prompts[0])))
    found = module.timed("m", "float32", module.Load((40, 90), (1, 2), 8, 3))
    assert set(found) == {"first token of 40", "first token of 90", "tokens a second of 1", "tokens a second of 2"}
    assert asked["max_model_len"] == 91

    def run(command: list[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        asked.update(env)
        return SimpleNamespace(returncode=0, stdout="noise\nFOUND [1]\n")

    monkeypatch.setattr(module.subprocess, "run", run)
    assert module.child("m", "dense", "tokens") == [1]
    assert (asked["DYNATTN_VLLM"], asked["VLLM_ALLOW_LONG_MAX_MODEL_LEN"]) == ("dense", "1")
