"""Which method each layer of vLLM attends by."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from dynattn.integrations.vllm.chosen import read
from dynattn.methods import parse
from dynattn.sparsity import LinearSetting
from tests.integrations.vllm import files


def tuned(tmp_path: Path, **changes: Any) -> str:
    methods = {f"model.layers.{i}.self_attn": method for i, method in ((1, "nm-1-2"), (10, "nm-2-4"))}
    return files.tuned(tmp_path, methods, **changes)


def test_a_method_is_every_layers() -> None:
    for decoding in (False, True):
        assert read("nm-2-4").method("model.layers.3.self_attn.attn", decoding) == parse("nm-2-4")


def test_a_tuned_file_gives_each_layer_its_own(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
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
        read(tuned(tmp_path, **{name: "spatten-0.5"}))


def test_what_vllms_linear_layers_do_not_leave_out_is_said(tmp_path: Path) -> None:
    path = tuned(tmp_path, linears={"prefill": LinearSetting({"0.down": "nmact-1-2"})})
    with pytest.warns(UserWarning, match="linear layers leave something out: those of vLLM stay dense"):
        assert read(path).method("model.layers.1.self_attn.attn", decoding=False) == parse("nm-1-2")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"phase": "prefill"', '"phase": "always"', "phase must be one of prefill, decode, both: got 'always'"),
        ('"nm-1-2"', '"nm-1-x"', "must be a method's name: got 'nm-1-x'"),
        ('"format": 1', '"format": 2', "format is 2, and this dynattn reads 1"),
        ('"methods"', '"method"', "methods is missing"),
        ("}\n", "", "it is cut short or damaged"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, before: str, after: str, said: str) -> None:
    path = Path(tuned(tmp_path))
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(ValueError, match=said):
        read(str(path))
