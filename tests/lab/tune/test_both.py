"""``--phase both``: each phase is searched and proved apart, and one file makes each attend by its own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

import transformers

from dynattn import kv_caches
from dynattn.integrations.transformers import attention_modules, load, observing
from dynattn.lab.figures import Spread
from dynattn.lab.terminal import console
from dynattn.lab.tune import both, decode, decoding
from dynattn.lab.tune.both import Both
from dynattn.lab.tune.command import run
from dynattn.lab.tune.decode import Decoding, Tried
from dynattn.lab.tune.results import Lost, Raced, Time, Try, Tuning
from dynattn.lab.tune.settings import Settings
from dynattn.sparsity import LinearSetting

LENGTH = 64
EVEN = Spread(median=1.3, q1=1.2, q3=1.4)
SPEED = Raced(dense=EVEN, tuned=EVEN, speedup=EVEN, rounds=3, disturbed=None)


def _lost(task: str) -> Lost:
    return Lost(
        task=task, metric="NLL, nats per token", data="texts", items=20, dense=3.0, tuned=3.0, loss=0.0, bound=0.005,
        limit=0.01, level=0.95, looks=20, worst=0.1, proved=True, silent=False,
    )  # fmt: skip


@pytest.fixture
def found(monkeypatch):
    """What each phase finds, without the work."""
    verdicts: dict[str, Any] = {"prefill": "faster", "decode": "faster"}

    def prefill(self) -> Tuning:
        assert self._settings.phase == "prefill"
        modules = attention_modules(self._pretrained.model)
        heads = {name: ["nm-1-2"] * self._pretrained.model.config.num_attention_heads for name in modules}
        return Tuning(
            model="m", kind="decoder", description="d", dtype="float32", phase="prefill", settings={}, machine={},
            verdict=verdicts["prefill"], reason="r",  # type: ignore[arg-type]
            time=Time(forward=1.0, modules=dict.fromkeys(modules, 0.1), length=LENGTH, bound=1.3), candidates=[],
            heads=heads, pruning=None, considered=[], whole_model=[], gains=[],
            tries=[Try(heads=heads, pruning=None, lost=[_lost("perplexity")])], rival=None, speed=SPEED, seconds=1.0,
            linears=verdicts.get("in prompts"),
        )  # fmt: skip

    def decoded(self) -> Decoding:
        way = "cache-window-32-s4" if verdicts["decode"] == "faster" else None
        return Decoding(
            model="m", description="d", dtype="float32", length=self._length, settings={}, machine={},
            verdict=verdicts["decode"], reason="r", way=way, considered=[],  # type: ignore[arg-type]
            tries=[Tried(way=str(way), lost=[_lost("decoding")])], speed=SPEED, seconds=1.0,
            linears=verdicts.get("in steps"),
        )  # fmt: skip

    monkeypatch.setattr(decode, "_PROVE", 24)
    monkeypatch.setattr(decode, "AFTER", 49)
    monkeypatch.setattr(decoding, "AFTER", 49)
    monkeypatch.setattr("dynattn.lab.tune.begin.plan", lambda *_, **__: _plan())
    monkeypatch.setattr("dynattn.lab.tune.begin.costs", lambda *_: {})
    monkeypatch.setattr(both.Run, "tune", prefill)
    monkeypatch.setattr(decode.Run, "tune", decoded)
    for module in ("both", "document", "decode_told"):
        monkeypatch.setattr(f"dynattn.lab.tune.{module}.describe", lambda _: "a machine")
    return verdicts


def _plan():
    from dynattn.lab.tune.plan import Counts, Plan

    return Plan(Counts(2, 1, 20, 6), 2, 0.1, 3)


def _run(model: Path, texts: Path, output: Path) -> tuple[Both, str, Path]:
    screen = io.StringIO()
    settings = Settings(str(model), texts=texts, phase="both", length=LENGTH, minutes=1000)
    result = run(settings, output, console(screen))
    assert isinstance(result, Both)
    return result, screen.getvalue(), output / f"tune-{model.name}-both"


def test_one_file_makes_each_phase_attend_by_its_own(found, tiny_decoder, many_texts, tmp_path):
    setting = LinearSetting({"0.down": "wina-0.5", "1.o": "nmweight-1-2"})
    found.update({"in prompts": "bysite(nmact-1-2=0.gate+0.up)", "in steps": setting.plain()})
    result, said, folder = _run(tiny_decoder, many_texts, tmp_path)
    assert result.verdict == "faster"
    assert said.index("Prefill") < said.index("Decoding")
    assert "inputs are left out anew for each token: nmact-1-2 in 2 linear layers" in said
    assert "left out by linear layers: wina-0.5 in 1 linear layer, nmweight-1-2 in 1 linear layer" in said
    page = (folder / "tune.html").read_text()
    assert "Prefill: What was found" in page
    assert "Decoding: What was found" in page
    assert Both.model_validate(json.loads((folder / "tune.json").read_text())) == result
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    tuned = load(model, folder / "model.dynattn.json")
    assert (tuned.phase, tuned.cache, tuned.decoding) == ("prefill", "window-32-s4", "dense")
    assert [each.details["task"] for each in tuned.evidence if "task" in each.details] == ["perplexity", "decoding"]
    assert set(tuned.methods.values()) == {"nm-1-2"}
    in_prompts = LinearSetting({"0.gate": "nmact-1-2", "0.up": "nmact-1-2"})
    assert tuned.linears == {"prefill": in_prompts, "decode": setting}
    cache = kv_caches.make(str(tuned.cache), model.config)
    attended = []
    with observing(lambda call: attended.append((call.query.shape[2], call.method.name))):
        ids = torch.arange(80)[None] % 50 + 5
        model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert {name for queries, name in attended if queries > 1} == {"nm-1-2"}
    assert {name for queries, name in attended if queries == 1} == {"dense"}
    assert cache.layers[0].held < 80


@pytest.mark.parametrize(("phase", "kept"), [("prefill", "prefill"), ("decode", "both")])
def test_where_one_phase_alone_is_faster_the_file_is_that_phases(
    phase, kept, found, tiny_decoder, many_texts, tmp_path
):
    found[{"prefill": "decode", "decode": "prefill"}[phase]] = "dense"
    result, _, folder = _run(tiny_decoder, many_texts, tmp_path)
    assert result.verdict == "faster"
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    tuned = load(model, folder / "model.dynattn.json")
    assert tuned.phase == kept
    assert (tuned.cache is None) == (phase == "prefill")
    assert tuned.decoding is None


def test_where_neither_is_faster_there_is_no_file(found, tiny_decoder, many_texts, tmp_path):
    found.update(prefill="dense", decode="dense")
    result, _, folder = _run(tiny_decoder, many_texts, tmp_path)
    assert result.verdict == "dense"
    assert not (folder / "model.dynattn.json").exists()


def test_an_encoder_has_no_two_phases_and_this_is_said_before_the_work(found, tiny_encoder, many_texts, tmp_path):
    with pytest.raises(ValueError, match="only decoders decode"):
        _run(tiny_encoder, many_texts, tmp_path)


def test_a_context_too_short_to_decode_in_is_said_so(found, tiny_decoder, many_texts, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "AFTER", 250)
    with pytest.raises(ValueError, match=r"leave room for 250 tokens .* takes 256; take a model of a longer context"):
        _run(tiny_decoder, many_texts, tmp_path)
