"""A tuned file: read, refused, loaded in every way that Transformers has, and undone."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn import pruning  # noqa: E402
from dynattn.integrations.transformers import (  # noqa: E402
    Evidence,
    Tuned,
    assign,
    attention_modules,
    coverage,
    load,
    observing,
    register,
)  # fmt: skip
from dynattn.methods import parse  # noqa: E402
from tests.integrations.transformers.tiny import assert_equal, text, tiny  # noqa: E402

register()
KINDS = ("llama", "bert", "vit", "whisper", "t5")
SPARSE = ("nm-1-4", "window-3-s1", "perhead(2*nm-1-2_2*topk-3)", "nm-1-2-w2-s1", "topk-2", "nm-2-4")


def inputs_of(kind: str, length: int = 13) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 20, 20, dtype=torch.float64, generator=generator)}
    if kind == "whisper":
        sound = torch.randn(2, 8, 50, dtype=torch.float64, generator=generator)
        return {"input_features": sound, "decoder_input_ids": text(2, length)["input_ids"]}
    inputs = text(length=length, padding="right")
    return {**inputs, "decoder_input_ids": text(length=6)["input_ids"]} if kind == "t5" else inputs


def methods_of(model: Any) -> dict[str, str]:
    return dict(zip(attention_modules(model), SPARSE * 2, strict=False))


def tuned_of(model: Any, **more: Any) -> Tuned:
    given: dict[str, Any] = {"dtype": torch.float64, "phase": "both", "lengths": (1, 100), **more}
    return Tuned.of(model, methods_of(model), **given)


@pytest.fixture
def saved(tmp_path, request):
    """A tiny llama with its file."""
    model = tiny("llama")
    path = tmp_path / "model.dynattn.json"
    tuned_of(model, **getattr(request, "param", {})).save(path)
    return model, path


def kept(model: Any, inputs: dict[str, Any]) -> list[tuple[str, str]]:
    """Modules and methods of the calls that a forward makes."""
    names = {module: name for name, module in model.named_modules()}
    calls: list[tuple[str, str]] = []
    with observing(lambda call: calls.append((names[call.module], call.method.name))), torch.no_grad():
        model(**inputs)
    return calls


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_attention_module_attends_by_its_own_method_and_the_undone_model_is_as_before(kind, tmp_path):
    model, inputs, path = tiny(kind), inputs_of(kind), tmp_path / "m.json"
    before, state = model(**inputs)[0], {name: set(vars(module)) for name, module in model.named_modules()}
    tuned_of(model).save(path)
    told = load(model, path)
    assert told == Tuned.read(path)
    assert dict(kept(model, inputs)) == methods_of(model)
    sparse = model(**inputs)[0]
    assert (sparse - before).abs().max() > 1e-3
    assert not coverage(model).elsewhere
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(**inputs)[0], before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == state


@torch.no_grad()
def test_dense_methods_give_the_models_own_outputs(tmp_path):
    for kind in KINDS:
        model, inputs = tiny(kind), inputs_of(kind)
        expected = model(**inputs)[0]
        assign(model, {})
        assert_equal(model(**inputs)[0], expected, inputs["attention_mask"] if kind in ("llama", "bert") else None)


@pytest.mark.parametrize("folder", ["plain", "flash_attention_2", "a b/ü"])
@torch.no_grad()
def test_every_way_to_ask_for_it_gives_the_same(folder, tmp_path, monkeypatch):
    model, path = tiny("llama", tie_word_embeddings=folder == "plain"), tmp_path / "model.dynattn.json"
    tuned_of(model).save(path)
    place = tmp_path / folder
    model.save_pretrained(place)
    path = path.rename(place / "model.dynattn.json")
    name = f"dynattn:{path}"
    ways = {"load": copy.deepcopy(model), "set": copy.deepcopy(model)}
    load(ways["load"], path)
    ways["set"].set_attn_implementation(name)
    auto = transformers.AutoModelForCausalLM
    ways["from_pretrained"] = auto.from_pretrained(place, attn_implementation=name, dtype=torch.float64)
    config = copy.deepcopy(model.config)
    ways["from_config"] = auto.from_config(config, attn_implementation=name, dtype=torch.float64)
    ways["from_config"].load_state_dict(model.state_dict())
    ways["copied"] = copy.deepcopy(ways["set"])
    ways["pickled"] = pickle.loads(pickle.dumps(ways["set"]))
    monkeypatch.chdir(place)
    ways["relative"] = auto.from_pretrained(".", attn_implementation="dynattn:model.dynattn.json", dtype=torch.float64)
    expected = methods_of(model)
    for way, found in ways.items():
        found.eval()
        assert dict(kept(found, inputs_of("llama"))) == expected, way
        assert_equal(found(**inputs_of("llama")).logits, ways["load"](**inputs_of("llama")).logits)
        found.save_pretrained(tmp_path / "again")
        again = auto.from_pretrained(tmp_path / "again", dtype=torch.float64)
        assert again.config._attn_implementation == "sdpa", way


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
def test_another_process_loads_and_unpickles(saved, tmp_path):
    model, path = saved
    load(model, path)
    inputs = inputs_of("llama")
    with torch.no_grad():
        torch.save((model(**inputs).logits, inputs), tmp_path / "expected.pt")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    path.rename(tmp_path / "kept.json")  # a pickled model needs no file
    script = f"""
import os, pickle, torch
folder = {str(tmp_path)!r}
expected, inputs = torch.load(folder + "/expected.pt")
pickled = pickle.load(open(folder + "/model.pickle", "rb"))
import transformers, dynattn.integrations.transformers
os.rename(folder + "/kept.json", folder + "/model.dynattn.json")
dynattn.integrations.transformers.register()
loaded = transformers.LlamaForCausalLM.from_pretrained(
    folder + "/model", attn_implementation="dynattn:" + folder + "/model.dynattn.json", dtype=torch.float64
)
with torch.no_grad():
    for model in (pickled, loaded):
        assert (model(**inputs).logits - expected).abs().max() < 1e-9
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_file_is_read_when_a_model_is_given_it(saved):
    model, path = saved
    load(model, path)
    other = copy.deepcopy(model)
    names = attention_modules(model)
    Tuned.of(model, {names[1]: "topk-1"}, dtype="float64", phase="both", lengths=(1, 9)).save(path)
    load(other, path)
    assert dict(kept(model, inputs_of("llama"))) == methods_of(model)
    assert dict(kept(other, inputs_of("llama", 8))) == {names[0]: parse("dense").name, names[1]: "topk-1"}


def _other_class(model: Any) -> Any:
    return model.model


def _trained_head(model: Any) -> Any:
    model.lm_head.weight.data += 1e-3
    return model


def _trained_adapter(model: Any) -> Any:
    model.model.layers[1].self_attn.q_proj.weight.data *= 1.001
    return model


def _more_layers(model: Any) -> Any:
    return tiny("llama", num_hidden_layers=3)


def _other_theta(model: Any) -> Any:
    model.config.rope_parameters["rope_theta"] = 5e5
    return model


OTHERS = {
    "class is LlamaForCausalLM in the file and LlamaModel here": _other_class,
    "weights differ": _trained_head,
    "weights differ: ": _trained_adapter,
    "config.num_hidden_layers is 2 in the file and 3 here": _more_layers,
    "config.rope_parameters.rope_theta is 10000 in the file and 500000 here": _other_theta,
    "class is LlamaForCausalLM in the file and BertModel here": lambda _: tiny("bert"),
}


@pytest.mark.parametrize("said", OTHERS)
def test_another_model_is_refused_and_stays_as_it_was(said, saved, tmp_path):
    model, path = saved
    other = OTHERS[said](copy.deepcopy(model))
    for ask in (lambda: load(other, path), lambda: other.set_attn_implementation(f"dynattn:{path}")):
        with pytest.raises(ValueError, match=said) as error:
            ask()
        assert str(path) in str(error.value)
        assert "dynattn tune" in str(error.value)
        assert other.config._attn_implementation == "sdpa"
        assert not any(hasattr(module, "dynattn_assigned") for module in other.modules())
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=said):
        type(other).from_pretrained(tmp_path / "other", attn_implementation=f"dynattn:{path}", dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cast_is_the_same_model_and_a_sibling_in_that_dtype_is_not(dtype, saved):
    model, path = saved
    cast = copy.deepcopy(model).to(dtype)
    load(cast, path)
    tuned_of(cast, dtype=dtype).save(path)
    load(copy.deepcopy(model), path)
    sibling = copy.deepcopy(model)
    for parameter in sibling.parameters():
        parameter.data += 0.05 * parameter.data.std() * torch.randn_like(parameter)
    with pytest.raises(ValueError, match="weights differ"):
        load(sibling, path)


def test_a_part_of_a_model_is_not_given_a_file(saved):
    model, path = saved
    with pytest.raises(ValueError, match="for a whole model"):
        model.set_attn_implementation({"text_config": f"dynattn:{path}"})
    with pytest.raises(ValueError, match="for a whole model"):
        model.set_attn_implementation({"": f"dynattn:{path}"})


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
@torch.no_grad()
def test_the_other_phase_is_dense(phase):
    model = tiny("llama")
    assign(model, methods_of(model), phase)
    cache = transformers.DynamicCache()
    ids = text(length=9)["input_ids"]
    prefill = dict(kept(model, {"input_ids": ids, "past_key_values": cache}))
    decode = dict(kept(model, {"input_ids": ids[:, :1], "past_key_values": cache}))
    dense = dict.fromkeys(attention_modules(model), parse("dense").name)
    assert prefill == (dense if phase == "decode" else methods_of(model))
    assert decode == (dense if phase == "prefill" else methods_of(model))


def said_by(model: Any, **inputs: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found, torch.no_grad():
        warnings.simplefilter("always")
        model(**inputs)
    return [str(one.message) for one in found if "was proved" in str(one.message)]


@pytest.mark.parametrize("saved", [{"lengths": (8, 12)}], indirect=True)
def test_a_call_outside_of_the_lengths_or_the_dtype_is_warned_of_once(saved):
    model, path = saved
    load(model, path)
    assert not said_by(model, **text(length=8))
    assert not said_by(model, **text(length=12))
    (said,) = said_by(model, **text(length=13))
    assert "8 to 12 keys" in said
    assert "above" in said
    assert path.name in said
    assert not said_by(model, **text(length=14))
    load(model, path)
    (said,) = said_by(model, **text(length=7))
    assert "below" in said
    load(model, path)
    (said,) = said_by(model.float(), **text(length=9))
    assert "in torch.float64" in said


@pytest.mark.parametrize("saved", [{"lengths": (8, 12)}], indirect=True)
def test_limits_are_of_each_text_of_a_packed_batch(saved):
    model, path = saved
    load(model, path)
    for lengths, times in (((10, 8, 12), 0), ((10, 13), 1)):
        ids = torch.randint(5, 90, (1, sum(lengths)))
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        assert len(said_by(model, input_ids=ids, position_ids=positions, use_cache=False)) == times


def test_calls_of_dense_modules_are_not_warned_of(saved):
    model, path = saved
    Tuned.of(model, {}, dtype="float64", phase="both", lengths=(8, 12)).save(path)
    load(model, path)
    assert not said_by(model, **text(length=20))


def test_one_graph_gives_what_the_model_gives_and_warns_once(tmp_path):
    torch._dynamo.reset()
    model, path = tiny("llama", num_hidden_layers=1), tmp_path / "m.json"
    tuned_of(model, lengths=(8, 12)).save(path)
    load(model, path)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for length, times in ((12, 0), (9, 0), (13, 1), (14, 0)):
        inputs = text(length=length, padding="left")
        assert len(said_by(compiled, **inputs)) == times
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
    torch._dynamo.reset()


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("kind", ["bert", "vit"])
@torch.no_grad()
def test_a_pruning_method_is_in_force_until_the_model_attends_in_another_way(kind, sparse, tmp_path):
    model, inputs, path = tiny(kind), inputs_of(kind), tmp_path / "m.json"
    before, state = model(**inputs)[0], {name: set(vars(module)) for name, module in model.named_modules()}
    methods = methods_of(model) if sparse else {}
    pruned = Tuned.of(model, methods, dtype=torch.float64, phase="both", lengths=(1, 100), pruning="spatten-0.5")
    pruned.save(path)
    assign(model, methods)
    with pruning.parse("spatten-0.5").apply(model, zero_pruned=kind == "bert"):
        expected = model(**inputs)[0]
    assert not torch.equal(expected, before)
    for _ in range(2):  # a second time it takes the place of the first
        load(model, path)
        assert_equal(model(**inputs)[0], expected)
    model.set_attn_implementation("sdpa")
    assert_equal(model(**inputs)[0], before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == state


def test_a_model_whose_tokens_cannot_be_pruned_is_refused_and_left_as_it_was(saved):
    model, path = saved
    tuned_of(model, pruning="ltp-0.01").save(path)
    with pytest.raises(ValueError, match="models that can be pruned"):
        load(model, path)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_pruning_is_loaded_from_its_folder(tmp_path):
    model, inputs, path = tiny("bert"), inputs_of("bert"), tmp_path / "m.json"
    model.save_pretrained(tmp_path / "model")
    tuned_of(model, pruning="spatten-0.5").save(path)
    load(model, path)
    name = f"dynattn:{path}"
    again = transformers.BertModel.from_pretrained(tmp_path / "model", attn_implementation=name, dtype=torch.float64)
    with torch.no_grad():
        assert_equal(again.eval()(**inputs)[0], model(**inputs)[0])


def test_saving_keeps_all_and_leaves_the_file_before_where_it_fails(saved):
    model, path = saved
    evidence = Evidence("loss", "texts", 0.004, None, 0.009, 0.95, 40, {"by_text": [0.1, 0.2]})
    tuned = tuned_of(model, evidence=(evidence,), machine={"processor": "x", "cores": 2}, pruning="ltp-0.01")
    tuned.save(path)
    assert Tuned.read(path) == tuned
    with pytest.raises(ValueError, match="finite"):
        tuned_of(model, evidence=(Evidence("loss", "texts", float("nan")),)).save(path)
    assert Tuned.read(path) == tuned
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    with pytest.raises(ValueError, match=r"must end in \.json"):
        tuned.save(path.with_suffix(".yaml"))


def _change(*keys: Any, to: Any = None) -> Any:
    def change(told: dict[str, Any]) -> None:
        *outer, last = keys
        for key in outer:
            told = told[key]
        if to is None:
            del told[last]
        else:
            told[last] = to

    return change


WRONG = {
    "format is 2, and this dynattn reads 1; a later dynattn wrote it": _change("format", to=2),
    "format is '1', and this dynattn reads 1; run": _change("format", to="1"),
    "format is None": _change("format"),
    "dtype is missing": _change("dtype"),
    "colour is no field": _change("colour", to=1),
    "dtype must be a floating": _change("dtype", to="int"),
    "phase must be one of": _change("phase", to="middle"),
    "lengths must be the fewest": _change("lengths", to=[9, 1]),
    "lengths.0 must be a whole number": _change("lengths", to=["1", 9]),
    "lengths must be a list": _change("lengths", to=9),
    "methods.model.layers.0.self_attn must be a method's name: got 'nm-9'": _change(
        "methods", "model.layers.0.self_attn", to="nm-9"
    ),
    "methods must be one for each of 2": _change("methods", "model.layers.0.self_attn"),
    "methods must be an object": _change("methods", to=["dense"]),
    "model.kind is missing": _change("model", "kind"),
    "model.layers must be a whole number": _change("model", "layers", to=True),
    "model.config.hidden_size must be a number": _change("model", "config", "hidden_size", to="32"),
    "model: .*weights must be base64": _change("model", "weights", to="!"),
    "evidence.0.value must be a number": _change("evidence", to=[{**vars(Evidence("a", "b", 1.0)), "value": "1"}]),
    "evidence.0.data is missing": _change("evidence", to=[{"what": "a", "value": 1.0}]),
    "pruning must be a string or null": _change("pruning", to=3),
    "pruning must be the name of a method that shortens": _change("pruning", to="nm-1-2"),
    "versions.torch must be a string": _change("versions", "torch", to=2),
    "decoding must be left out unless": _change("decoding", to="nm-1-2"),
    "decoding must be a string or null": _change("decoding", to=1),
    "machine must be an object": _change("machine", to=[1]),
    "linears must be an object": _change("linears", to=[1]),
    "linears must be by phase, prefill or decode: got 'both'": _change(
        "linears", to={"both": {"methods": {"0.q": "wina-0.5"}, "thresholds": {}, "norms": {}}}
    ),
    "linears.decode.norms is missing": _change("linears", to={"decode": {"methods": {}, "thresholds": {}}}),
    "linears.decode.methods.0.q must be a string": _change(
        "linears", to={"decode": {"methods": {"0.q": 1}, "thresholds": {}, "norms": {}}}
    ),
    "linears.decode: LinearSetting: 0.q must have thresholds": _change(
        "linears", to={"decode": {"methods": {"0.q": "teal-0.5"}, "thresholds": {}, "norms": {}}}
    ),
    "linears.decode.thresholds.0.q.0 must be finite": _change(
        "linears", to={"decode": {"methods": {"0.q": "teal-0.5"}, "thresholds": {"0.q": [math.inf]}, "norms": {}}}
    ),
    "linears.decode.thresholds.0.q must be a list": _change(
        "linears", to={"decode": {"methods": {"0.q": "teal-0.5"}, "thresholds": {"0.q": 1.0}, "norms": {}}}
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_field_is_named_with_the_file_and_a_remedy(said, saved):
    model, path = saved
    told = json.loads(path.read_text())
    WRONG[said](told)
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=said) as error:
        load(model, path)
    assert str(path) in str(error.value)
    assert "dynattn tune" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100000, b"[]", b"null", b'{"format": NaN}'])
def test_a_damaged_file_is_named(content, saved):
    model, path = saved
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.dynattn\.json must hold"):
        load(model, path)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
def test_a_file_cut_short_is_named(cut, saved):
    model, path = saved
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(ValueError, match="cut short or damaged"):
        load(model, path)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), None])
def test_what_is_no_model_of_transformers_is_refused(model, saved):
    with pytest.raises(TypeError, match=f"load: model must be a model of Transformers: got {type(model).__name__}"):
        load(model, saved[1])


def test_a_missing_file_is_named(saved, tmp_path):
    model, path = saved
    for missing in (tmp_path / "none.json", tmp_path / "folder.json"):
        if missing.stem == "folder":
            missing.mkdir()
        with pytest.raises(ValueError, match=f"{missing.name} must be a file that can be read"):
            load(model, missing)
    with pytest.raises(ValueError, match=r"must end in \.json"):
        load(model, path.with_suffix(""))


def test_unknown_modules_and_phases_are_refused():
    model = tiny("bert")
    with pytest.raises(ValueError, match=r"encoder\.layer\.9"):
        assign(model, {"encoder.layer.9.attention.self": "dense"})
    with pytest.raises(ValueError, match="phase must be one of"):
        assign(model, {}, "middle")
    with pytest.raises(ValueError, match="must not be PerLayer"):
        assign(model, {attention_modules(model)[0]: "perlayer(dense_0=nm-1-2)"})
    with pytest.raises(ValueError, match="a model that has none"):
        assign(torch.nn.Linear(2, 2), {})
    assert model.config._attn_implementation == "sdpa"


def test_the_file_is_small(saved):
    _, path = saved
    assert path.stat().st_size < 5000
    assert isinstance(Path(path).read_text(encoding="utf-8"), str)
