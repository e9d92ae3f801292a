"""The whole comparison on tiny models: what it measures, what it writes, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")


from dynattn.lab.compare import Comparison, Settings, compare, memory, run
from dynattn.lab.compare.document import page
from dynattn.lab.compare.terminal import summary
from dynattn.lab.models import load
from tests.covering import part
from tests.lab.compare.running import METHODS, silent


def test_every_method_has_every_figure(found: Comparison):
    names = ["sdpa", *METHODS]
    assert found.methods == METHODS
    (task,) = found.tasks
    throughput = found.throughput
    assert throughput is not None
    assert [result.method for result in task.results] == names
    assert all(len(result.scores) == len(task.items) == 6 for result in task.results)
    assert [row.method for row in found.latency.rows] == [*names, "eager"]
    assert [row.method for row in throughput.rows] == names
    assert [row.method for row in found.attention.rows] == names
    assert found.attention.calls == 2  # layers
    assert (found.latency.batch, throughput.batch, found.latency.length) == (1, 2, 64)
    assert [share.method for share in found.shares] == names
    assert all(0 < share.attention < share.forward for share in found.shares)
    assert found.latency.rows[0].speedup.median == 1


def test_dense_by_the_own_kernel_agrees_and_sparse_differs(found: Comparison):
    (task,) = found.tasks
    assert task.of("dense").agreement == pytest.approx(1, abs=1e-5)
    agreement = task.of("nm-1-2").agreement
    assert agreement is not None
    assert agreement < 1 - 1e-6


def test_a_decoder_is_judged_by_perplexity_and_passkey(
    tiny_decoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "_CLEAR", Path("/nonexistent"))
    settings = Settings(str(tiny_decoder), methods=("nm-1-2-w64-s4",), text=texts, items=2, tokens=100, seconds=0.05)
    found = compare(settings, silent)
    assert [task.name for task in found.tasks] == ["perplexity", "passkey"]
    assert found.throughput is not None
    assert found.throughput.batch == found.batch == 20  # 2048 // 100
    assert found.memory == []
    assert "only Linux" in found.memory_note
    assert found.tasks[1].of("nm-1-2-w64-s4").difference is not None
    assert "too few items" in page(found)  # 2 keys


@pytest.mark.usefixtures("forked_python")
@pytest.mark.parametrize("dtype", part(["bfloat16", "float16"], 2))
def test_a_dtype_is_that_of_the_model_and_of_both_attentions(
    dtype: str, tiny_encoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
):
    """The process that measures memory is told as well: it would refuse inputs of another dtype, or run in float32."""
    seen = set()

    def look(function):
        def watched(*args, **kwargs):
            seen.update(x.dtype for x in args if isinstance(x, torch.Tensor) and x.is_floating_point())
            return function(*args, **kwargs)

        return watched

    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", look(sdpa))
    settings = Settings(str(tiny_encoder), ("nm-1-2",), text=texts, items=4, tokens=64, seconds=0.05, dtype=dtype)
    found = compare(settings, silent)
    assert seen == {getattr(torch, dtype)}
    assert found.dtype == found.settings["dtype"] == dtype
    assert f"in {dtype}" in page(found)
    assert summary(found).title.endswith(f"in {dtype}")
    assert all(len(result.scores) == 4 for result in found.tasks[0].results)
    if Path("/proc/self/clear_refs").exists():
        assert [entry.method for entry in found.memory] == ["sdpa", "nm-1-2", "eager"], found.memory_note


def test_one_item_at_once_is_timed_once(tiny_encoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_CLEAR", Path("/nonexistent"))  # spares a process
    monkeypatch.setattr(run, "_ENOUGH_TOKENS", 127)  # one text of 64 tokens
    settings = Settings(str(tiny_encoder), ("nm-1-2",), text=texts, items=2, tokens=64, seconds=0.05)
    found = compare(settings, silent)
    assert found.throughput is None
    assert found.batch == 1
    text = page(Comparison.model_validate_json(found.model_dump_json()))
    assert "throughput" not in text
    assert "items per s" in text  # of the latency's table
    assert summary(found).columns[1] == "attention"
    assert len(summary(found).columns) == 7


def test_a_model_that_goes_past_dynattn_is_refused(tiny_encoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch):
    pretrained = load(str(tiny_encoder))
    monkeypatch.setattr(pretrained.model, "set_attn_implementation", lambda _: None)  # as models of old style do
    monkeypatch.setattr(run, "load", lambda *_: pretrained)
    with pytest.raises(ValueError, match=r"BertModel\) ran without one call of dynattn:nm-1-2.*another model"):
        compare(Settings(str(tiny_encoder), ("nm-1-2",), text=texts, items=2, tokens=64), silent)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"tasks": ("perplexity",)}, "task perplexity takes a model that is decoder"),
        ({"tasks": ("manpages",)}, "task manpages takes no texts"),
        ({"model": "dinov2"}, "task saliency takes no texts"),
        ({"model": "minlm"}, "did you mean minilm"),
    ],
)
def test_what_is_not_for_the_models_kind_is_refused_before_it_is_loaded(
    asked: dict, words: str, tiny_encoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=words):
        compare(Settings(**({"model": str(tiny_encoder), "text": texts} | asked)), silent)
