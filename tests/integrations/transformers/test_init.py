"""Registration: names, loading by name, and an import that changes nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, cast

import pytest

from dynattn import NM

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import register  # noqa: E402
from tests.integrations.transformers.tiny import tiny  # noqa: E402


def test_names_and_loading(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    for name in register(NM(3, 8, window=32), "nm-4-4"):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
        assert model.config._attn_implementation == name
    assert register(NM(3, 8, window=32), "nm-4-4")[:2] == ("dynattn:nm-3-8-w32", "dynattn:nm-4-4")
    with pytest.raises(ValueError, match="a method's short name"):
        register("nm-two-four")
    with pytest.raises(TypeError, match=r"register: method must be a method or its short name: got 4; pass NM\(2, 4\)"):
        cast(Any, register)(4)


def test_importing_changes_nothing():
    code = "import sys, dynattn.integrations.transformers; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
