"""Decoding by every way, against what it is by definition: one pass over the whole text where nothing is lost."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM

from dynattn.integrations.transformers import register
from dynattn.kv_caches import FullCache, SpAttenCache, WindowCache
from dynattn.lab.decode.prompt import PIECE, cache_bytes, cache_of, read, score, shortened, step_seconds
from dynattn.lab.decode.results import DecodeQuality, DecodeSpeed
from dynattn.lab.decode.ways import BASELINE, find
from dynattn.lab.models import load

PROMPT = 80


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 97, (1, PROMPT + PIECE + 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def prompt(model, ids):
    return read(model, ids[:, :PROMPT])


@pytest.mark.parametrize("name", [BASELINE, "dense-in-place", "nm-1-1", "cache-window-999-s4", "topk-1.0"])
def test_ways_that_lose_nothing_score_as_one_pass(model, ids, prompt, name):
    answer = 15
    found, hit = score(model, prompt, find(name), ids, answer)
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        logits = model(ids).logits[0, -answer - 1 : -1]
    assert found == pytest.approx(torch.nn.functional.cross_entropy(logits, ids[0, -answer:]).item(), rel=1e-4)
    assert hit == bool((logits.argmax(-1) == ids[0, -answer:]).all())


@pytest.mark.parametrize("name", ["nm-2-4", "topk-0.25-f4", "window-16-s2"])
def test_methods_score_as_one_pass_in_which_only_the_prompt_is_dense(model, ids, prompt, name):
    """The prompt's keys and values are dense; after it, pieces give what tokens one by one give."""
    way = find(name)
    together, _ = score(model, prompt, way, ids, 15)
    cache = cache_of(model, prompt, way)
    model.set_attn_implementation(way.implementation)
    with torch.no_grad():
        one_by_one = [model(token, past_key_values=cache).logits[0] for token in ids[:, PROMPT:-1].split(1, 1)]
    expected = torch.nn.functional.cross_entropy(torch.cat(one_by_one)[-15:], ids[0, -15:]).item()
    dense, _ = score(model, prompt, find(BASELINE), ids, 15)
    assert together == pytest.approx(expected, rel=2e-5)
    assert together != pytest.approx(dense, rel=2e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cache-window-24-s2", WindowCache),
        ("cache-spatten-0.25", SpAttenCache),
        ("cache-spatten-flat-0.5", SpAttenCache),
    ],
)
def test_a_cache_made_of_a_prompt_is_the_one_that_reads_it(model, ids, prompt, name, kind):
    way = find(name)
    made, reads = cache_of(model, prompt, way), way.cache(model.config)
    model.set_attn_implementation("dynattn:dense")
    with torch.no_grad():
        model(ids[:, :PROMPT], past_key_values=reads)
    assert isinstance(made, kind)
    for a, b in zip(made.layers, reads.layers, strict=True):
        assert a.positions.tolist() == b.positions.tolist()
        torch.testing.assert_close(a.keys, b.keys)
    assert made.layers[-1].held < PROMPT


def test_flat_ratios_leave_the_first_layers_whole(model, prompt):
    held = [layer.held for layer in cache_of(model, prompt, find("cache-spatten-flat-0.5")).layers]
    assert held == [80, 80, 40, 40, 40, 40, 40, 40]
    falling = [layer.held for layer in cache_of(model, prompt, find("cache-spatten-0.5")).layers]
    assert falling[:2] == [80, 80]
    assert falling[-1] == 40
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) == 7


def test_ways_by_name(model):
    assert find("dense").implementation == find("cache-window-8-s1").implementation == "sdpa"
    assert find("nm-2-4").implementation == "dynattn:nm-2-4"
    assert find("cache-spatten-0.25").implementation == "dynattn:dense"
    assert isinstance(find("nm-2-4").cache(model.config), FullCache)
    with pytest.raises(ValueError, match="nonsense"):
        find("nonsense")


def test_a_prompt_can_be_cut_and_its_bytes_told(model, ids, prompt):
    cache = cache_of(model, shortened(prompt, 16), find(BASELINE))
    assert cache.get_seq_length() == 16
    assert cache_bytes(cache) == 8 * 2 * 16 * 2 * 8 * 4  # layers, keys and values, tokens, heads, head_dim, float32
    full = cache_of(model, shortened(prompt, 16), find("dense-in-place"))
    assert cache_bytes(full) > cache_bytes(cache)
    assert step_seconds(model, prompt, find("cache-window-24-s2"), ids[:, PROMPT : PROMPT + 3]) > 0


def test_the_answer_is_the_ways_to_tell(model, ids, prompt):
    with pytest.raises(ValueError, match="a token must stand between"):
        score(model, prompt, find(BASELINE), ids, ids.shape[1] - PROMPT)


@pytest.mark.model
@pytest.mark.parametrize(("cache", "implementation"), [("full", "dynattn:dense"), ("full", "sdpa"), ("window", "sdpa")])
def test_a_real_model_writes_what_transformers_writes(cache, implementation):
    """Token by token, where nothing is evicted."""
    pretrained = load("smollm2")
    prompt = pretrained.processor("The history of the river Danube begins in", return_tensors="pt")
    asked = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    pretrained.model.set_attn_implementation("sdpa")
    expected = pretrained.model.generate(**prompt, **asked)
    register()
    pretrained.model.set_attn_implementation(implementation)
    made = FullCache(room=5) if cache == "full" else WindowCache(window=64)
    found = pretrained.model.generate(**prompt, **asked, past_key_values=made)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for a, b in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """benchmarks/decode.py and decode_table.py, which write to a folder of the test's."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    decode, table = importlib.import_module("decode"), importlib.import_module("decode_table")
    for script in (decode, table):
        monkeypatch.setattr(script, "RESULTS", tmp_path)
    return decode, table


def test_speed_and_quality_are_recorded_and_written_as_tables(scripts, model, ids, monkeypatch, tmp_path):
    """A record that was begun is gone on with; what is not plain is not bold."""
    decode, table = scripts
    pretrained = SimpleNamespace(name="tiny", description="a tiny model", model=model)
    monkeypatch.setattr(decode, "READ", 64)
    monkeypatch.setattr(decode, "SECONDS", 0.01)
    monkeypatch.setattr(decode, "_article", lambda pretrained, index, tokens: ids[:, :tokens])
    decode.speed(pretrained, 128)
    asked = [decode.Question("needle", f"depth {i}", ids.roll(i, 1), PROMPT, 15) for i in range(5)]
    monkeypatch.setattr(decode, "questions", lambda pretrained, length: asked[:2])
    decode.quality(pretrained, 128)
    monkeypatch.setattr(decode, "questions", lambda pretrained, length: asked)
    decode.quality(pretrained, 128)
    speed = DecodeSpeed.model_validate_json((tmp_path / "speed-128.json").read_text())
    quality = DecodeQuality.model_validate_json((tmp_path / "quality-128.json").read_text())
    assert [row.way for row in speed.rows] == [way.name for way in decode.ways(128)] + ["bare"]
    assert speed.of("cache-window-32-s4").cache < speed.of("dense").cache < speed.of("dense-in-place").cache
    assert [item.item for item in quality.items] == [f"depth {i}" for i in range(5)]
    assert quality.items[3].nll["dense"] == pytest.approx(
        score(model, read(model, asked[3].ids[:, :PROMPT]), find("dense"), asked[3].ids, 15)[0]
    )
    worse = {"dense": 1.0, "nm-2-4": 1.5, "topk-0.25": 1.0}
    plain = quality.model_copy(
        update={
            "ways": list(worse),
            "items": [i.model_copy(update={"nll": {k: v + 0.01 * n for k, v in worse.items()}}) for n, i in
                      enumerate(quality.items)],
        }
    )  # fmt: skip
    text = table.tables([speed], [plain])
    assert "| `dense` | 1.020 |" in text
    assert "| `nm-2-4` | **+0.500 [+0.500, +0.500]** |" in text
    assert "| `topk-0.25` | +0.000 [+0.000, +0.000] |" in text
    assert text.index("`dense`") < text.index("`nm-2-4`") < text.index("`bare`")
    monkeypatch.setattr(decode, "ways", lambda length: [find("dense")])
    with pytest.raises(SystemExit, match="move it away"):
        decode.quality(pretrained, 128)
