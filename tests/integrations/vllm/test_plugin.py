"""The plugin that vLLM calls when it starts does nothing unasked."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from dynattn.integrations.vllm import plugin


def test_nothing_happens_unasked_and_mistakes_are_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNATTN_VLLM", raising=False)
    plugin.register()
    monkeypatch.setenv("DYNATTN_VLLM", "nm-9-2")
    with pytest.raises(ValueError, match=r"nm-9-2|n must be|at most m"):
        plugin.register()
    monkeypatch.setenv("DYNATTN_VLLM", "nowhere.json")
    with pytest.raises(ValueError, match=r"nowhere\.json must be a file that can be read"):
        plugin.register()


def test_dynattn_does_not_import_vllm() -> None:
    code = "import sys, dynattn, dynattn.integrations.vllm.plugin; assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_vllm_finds_the_plugin() -> None:
    found = [
        point.value
        for point in importlib.metadata.entry_points(group="vllm.general_plugins")
        if point.name == "dynattn"
    ]
    if not found:
        pytest.skip("dynattn is not installed here, so that it has no entry points")
    assert found == ["dynattn.integrations.vllm.plugin:register"]
