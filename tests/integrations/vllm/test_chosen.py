"""Which method each layer of vLLM attends by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dynattn.integrations.vllm.chosen import read
from dynattn.methods import parse


def tuned(tmp_path: Path, **changes: Any) -> str:
    methods = {f"model.layers.{i}.self_attn": method for i, method in ((1, "nm-1-2"), (10, "nm-2-4"))}
    path = tmp_path / "model.dynattn.json"
    path.write_text(json.dumps({"methods": methods, "phase": "prefill", "pruning": None, "cache": None, **changes}))
    return str(path)


def test_a_method_is_every_layers() -> None:
    for decoding in (False, True):
        assert read("nm-2-4").method("model.layers.3.self_attn.attn", decoding) == parse("nm-2-4")


def test_a_tuned_file_gives_each_layer_its_own(tmp_path: Path) -> None:
    chosen = read(tuned(tmp_path))
    assert chosen.method("model.layers.1.self_attn.attn", decoding=False) == parse("nm-1-2")
    assert chosen.method("model.layers.10.self_attn.attn", decoding=False) == parse("nm-2-4")
    assert chosen.method("model.layers.10.self_attn.attn", decoding=True) == parse("dense")
    with pytest.raises(ValueError, match=r"must name every attention layer: model.layers.2.self_attn.attn"):
        chosen.method("model.layers.2.self_attn.attn", decoding=False)


def test_a_file_may_name_a_method_of_decoding(tmp_path: Path) -> None:
    chosen = read(tuned(tmp_path, decoding="window-64-s4"))
    assert chosen.method("model.layers.1.self_attn.attn", decoding=False) == parse("nm-1-2")
    assert chosen.method("model.layers.1.self_attn.attn", decoding=True) == parse("window-64-s4")


@pytest.mark.parametrize("name", ["pruning", "cache"])
def test_what_vllms_cache_cannot_do_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"must not name a {name} for vLLM"):
        read(tuned(tmp_path, **{name: "dynamicvit-0.5"}))
