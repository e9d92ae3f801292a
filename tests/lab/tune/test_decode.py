"""``--phase decode``: caches are measured by what is decoded after a prompt, and the file says which to take."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("rich")
pytest.importorskip("jinja2")

import transformers

from dynattn import kv_caches
from dynattn.integrations.transformers import load
from dynattn.lab.decode import ways
from dynattn.lab.models import load as load_model
from dynattn.lab.tasks.texts import read
from dynattn.lab.terminal import console
from dynattn.lab.timing import Timing
from dynattn.lab.tune import decode, decode_told, decoding
from dynattn.lab.tune.command import run
from dynattn.lab.tune.decode import Decoding
from dynattn.lab.tune.linears.steps import Linears
from dynattn.lab.tune.settings import Settings
from dynattn.sparsity import LinearSetting

LENGTH, AFTER = 64, 49
FAST = {ways.BASELINE: 1.0, "dense-in-place": 0.8, "cache-spatten-0.75": 0.7, "cache-window-32-s4": 0.5}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(decode, "_PROVE", 24)  # hiding numbers in texts is what takes time here
    monkeypatch.setattr(decode, "AFTER", AFTER)
    monkeypatch.setattr(decoding, "AFTER", AFTER)


@pytest.fixture
def timed(monkeypatch):
    """A machine on which caches that forget pay, and linear layers that leave something out where a test says so."""

    def steps(self, names, rounds, reading):
        found = {}
        for name in (ways.BASELINE, *names):
            way, label = decoding.parted(name)
            found[name] = Timing((FAST.get(way, 0.9) * (1 if label is None else 0.5),) * rounds, 1)
        return found

    monkeypatch.setattr(decode.Run, "_steps", steps)
    monkeypatch.setattr(Linears, "costs", lambda _: {})


def _run(model, texts, output, **given) -> tuple[Decoding, str]:
    screen = io.StringIO()
    settings = Settings(str(model), texts=texts, **{"length": LENGTH, "phase": "decode", "minutes": 1000, **given})
    found = run(settings, output, console(screen))
    assert isinstance(found, Decoding)
    return found, screen.getvalue()


def test_the_fastest_cache_that_keeps_the_limits_is_proved_and_can_be_loaded(timed, tiny_decoder, many_texts, tmp_path):
    found, said = _run(tiny_decoder, many_texts, tmp_path, max_loss=0.9)
    assert found.way == "cache-window-32-s4"
    assert found.tries[-1].holds
    assert [lost.task for lost in found.tries[-1].lost] == ["decoding", "keys, decoded"]
    assert found.speed is not None
    assert found.speed.speedup.median == pytest.approx(2)
    assert "cache-window-32-s4: 2.00 times as fast a step" in said
    folder = tmp_path / f"tune-{tiny_decoder.name}-decode"
    assert "kv_caches.make" in (folder / "tune.html").read_text()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    tuned = load(model, folder / "model.dynattn.json")
    assert tuned.cache == "window-32-s4"
    cache = kv_caches.make(tuned.cache, model.config)
    ids = torch.arange(80)[None] % 50 + 5
    model.generate(ids, past_key_values=cache, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert cache.layers[0].held < 80


def test_linear_layers_that_leave_something_out_are_proved_with_a_cache_and_loaded_for_steps(
    timed, tiny_decoder, many_texts, tmp_path, monkeypatch
):
    dense = {"q": 1.0, "o": 1.0, "gate": 2.0, "down": 2.0, "mlp": 4.0}
    seconds = {"dense": dense, "teal-0.5": {**dense, "gate": 1.0}, "chess-0.5": {**dense, "mlp": 2.0}}
    monkeypatch.setattr(Linears, "costs", lambda _: seconds)
    asked = []

    def nats(model, reading, names, applied):
        asked.extend(names)
        lost = {"inputs-1": 0.001, "neurons-1": 0.002, "neurons-2": 0.003}  # the other one more than is allowed
        labels = {name: decoding.parted(name)[1] for name in names}
        return {
            name: [2.0 + (0.0 if label is None else lost.get(label, 0.5))] * len(reading.spans)
            for name, label in labels.items()
        }

    monkeypatch.setattr(decoding, "nats", nats)
    found, said = _run(tiny_decoder, many_texts, tmp_path)
    assert "dense-in-place with inputs-2" in asked
    assert found.way == "cache-window-32-s4 with inputs-1"
    assert found.tries[-1].holds
    assert found.linears is not None
    assert set(found.linears["methods"].values()) == {"teal-0.5"}
    looked = [each for each in found.considered if " with " in each.way]
    assert {each.way.split(" with ")[0] for each in looked} == {"dense-in-place", "cache-window-32-s4"}
    assert all(each.keeps and each.speedup == 4 for each in looked if each.way == found.way)
    assert "In steps something is left out by linear layers" in said
    folder = tmp_path / f"tune-{tiny_decoder.name}-decode"
    assert "What linear layers leave out" in (folder / "tune.html").read_text()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    ids = torch.arange(20)[None] % 50 + 5
    with torch.no_grad():
        before = [model(ids).logits, model(ids[:, :1]).logits]
        tuned = load(model, folder / "model.dynattn.json")
        after = [model(ids).logits, model(ids[:, :1]).logits]
    assert tuned.cache == "window-32-s4"
    assert tuned.linears["decode"].methods == found.linears["methods"]
    torch.testing.assert_close(before[0], after[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[1], after[1], rtol=1e-4, atol=1e-5)
    for name in ("costs", "families"):  # a run that goes on does not look again, and proves the same
        monkeypatch.setattr(Linears, name, None)
    again, _ = _run(tiny_decoder, many_texts, tmp_path)
    assert (again.way, again.linears, again.tries) == (found.way, found.linears, found.tries)


def test_a_setting_of_linear_layers_counts_behind_the_prompt_alone(tiny_decoder):
    pretrained = load_model(str(tiny_decoder))
    ids = torch.randint(60, (1, LENGTH + AFTER), generator=torch.Generator().manual_seed(0))
    reading, setting = decoding.going_on(decoding.Piece("t", 0, ids)), LinearSetting({"0.o": "wina-0.3"})
    names = ("dense-in-place", "dense-in-place with it")
    found = decoding.nats(pretrained.model, reading, names, lambda label: lambda: setting.apply(pretrained.model))
    assert found[names[0]] != pytest.approx(found[names[1]], abs=1e-5)
    cache = transformers.DynamicCache(config=pretrained.model.config)
    with torch.no_grad():
        pretrained.model(ids[:, :LENGTH], past_key_values=cache)
        with setting.apply(pretrained.model):
            logits = pretrained.model(ids[:, LENGTH:-1], past_key_values=cache).logits[0]
    whole = torch.nn.functional.cross_entropy(logits, ids[0, LENGTH + 1 :], reduction="none")
    expected = [whole[a - LENGTH - 1 : b - LENGTH - 1].mean().item() for a, b in reading.spans]
    torch.testing.assert_close(found[names[1]], expected, rtol=1e-4, atol=1e-5)


def test_the_claim_says_that_its_items_are_pieces_of_few_texts(timed, tiny_decoder, texts, tmp_path):
    found, _ = _run(tiny_decoder, texts, tmp_path, max_loss=0.9)
    said = {lost.data.split(" ", 1)[1] for each in found.tries for lost in each.lost}
    assert said == {"pieces, drawn by chance from 2 texts, and speaking of these alone, after prompts of 64 tokens"}


def test_where_nothing_may_be_lost_no_cache_that_forgets_is_taken(
    timed, tiny_decoder, many_texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(decode, "_SEARCH", 16)  # on a few texts, forgetting may help a model of random weights
    found, _ = _run(tiny_decoder, many_texts, tmp_path, max_loss=1e-6)
    kept = {each.way for each in found.considered if each.keeps}
    assert kept <= {"dense-in-place"}
    assert (found.way, found.exact, found.tries) == ("dense-in-place", True, [])


def test_a_cache_in_place_is_timed_whatever_rounding_makes_of_its_scores(
    timed, tiny_decoder, many_texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        decoding,
        "nats",
        lambda model, reading, names, applied: {
            name: [2.0 if name == ways.BASELINE else 2.5] * len(reading.spans) for name in names
        },
    )
    found, said = _run(tiny_decoder, many_texts, tmp_path)
    assert not any(each.keeps for each in found.considered)
    assert (found.way, found.exact, found.tries) == ("dense-in-place", True, [])
    assert "none of them is faster and keeps the limits" in said


@pytest.mark.parametrize("faster", [True, False])
def test_a_cache_in_place_needs_no_proof_where_none_that_forgets_is_proved(
    timed, tiny_decoder, many_texts, tmp_path, monkeypatch, faster
):
    monkeypatch.setitem(FAST, "dense-in-place", 0.8 if faster else 1.1)
    tried = decode.Run._tried

    def unproved(self, number, way, worst):
        assert way != "dense-in-place"
        found = tried(self, number, way, worst)
        return found.model_copy(update={"lost": [its.model_copy(update={"proved": False}) for its in found.lost]})

    monkeypatch.setattr(decode.Run, "_tried", unproved)
    found, said = _run(tiny_decoder, many_texts, tmp_path, max_loss=0.9)
    file = tmp_path / f"tune-{tiny_decoder.name}-decode" / "model.dynattn.json"
    assert found.tries
    assert "that the loss stays below the limit could not be proved" in said
    if not faster:
        assert (found.way, found.verdict, file.exists()) == (None, "dense", False)
        return
    assert (found.way, found.verdict, found.exact) == ("dense-in-place", "faster", True)
    assert "dense-in-place: 1.25 times as fast a step" in said
    tuned = load(transformers.AutoModelForCausalLM.from_pretrained(tiny_decoder).eval(), file)
    assert tuned.cache == "full"
    assert [each.what for each in tuned.evidence] == ["speed-up of a decode step over Transformers' default cache"]


def test_a_way_that_forgets_nothing_loses_nothing(tiny_decoder, many_texts):
    pretrained = load_model(str(tiny_decoder))
    ids = torch.randint(60, (1, LENGTH + AFTER), generator=torch.Generator().manual_seed(0))
    reading = decoding.going_on(decoding.Piece("t", 0, ids))
    assert reading.start == LENGTH
    found = decoding.nats(pretrained.model, reading, (ways.BASELINE, "dense-in-place", "cache-window-16-s4"))
    torch.testing.assert_close(found["dense-in-place"], found[ways.BASELINE], rtol=1e-4, atol=1e-5)
    assert found["cache-window-16-s4"] != pytest.approx(found[ways.BASELINE], abs=1e-5)
    pretrained.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = pretrained.model(ids).logits[0, :-1]
    whole = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    expected = [whole[a - 1 : b - 1].mean().item() for a, b in reading.spans]
    torch.testing.assert_close(found[ways.BASELINE], expected, rtol=1e-4, atol=1e-5)


def test_a_file_names_the_cache_and_the_attention_that_it_needs():
    ways_to = decoding.candidates(4096)
    assert {"cache-quest-1024", "cache-quest-512"} <= set(ways_to)
    found = {way: decode_told.attends(Decoding.model_construct(way=way)) for way in ways_to}
    assert found["cache-quest-512"] == ("quest-512", "dense")
    assert found["cache-spatten-0.5"] == ("spatten-0.5", "dense")
    assert found["cache-window-512-s4"] == ("window-512-s4", "dense")


@pytest.mark.parametrize(
    ("given", "rule"),
    [({"length": 240}, "must leave room for 49 tokens"), ({"length": 200}, "must hold at least")],
)
def test_what_cannot_be_is_refused(given, rule, tiny_decoder, texts, tmp_path):
    short = tmp_path / "short"
    short.mkdir()
    (short / "a.txt").write_text("moon river stone " * 100)
    with pytest.raises(ValueError, match=rule):
        _run(tiny_decoder, short, tmp_path, **given)


def test_an_encoder_decodes_nothing(tiny_encoder, many_texts, tmp_path):
    with pytest.raises(ValueError, match="only decoders decode"):
        _run(tiny_encoder, many_texts, tmp_path)


def test_a_model_that_names_no_context_takes_prompts_of_any_length(tiny_decoder, many_texts, monkeypatch):
    pretrained = load_model(str(tiny_decoder))
    assert decode.room(pretrained) == 256 - AFTER
    monkeypatch.setitem(vars(pretrained.model.config), "max_position_embeddings", None)  # as of models like Bloom
    assert decode.room(pretrained) is None
    parts, _ = decode._parts(pretrained, read(many_texts), 256)
    assert {reading.ids.shape[1] for reading in parts[0][0]} == {256 + AFTER}
