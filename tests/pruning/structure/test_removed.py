"""The setting: read and written, and exported as a model where a config can say it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from dynattn.pruning import Element, Removed
from dynattn.pruning.structure.removed import SETTING
from tests.pruning.structure.models import DECODERS, close, inputs, make, output


def test_a_setting_comes_back(tmp_path):
    removed = Removed(frozenset({Element("mlp", 2), Element("heads", 0, 2, 4)})).without(Element("attention", 10))
    removed.save(tmp_path / "new" / "removed.json")
    assert Removed.load(tmp_path / "new" / "removed.json") == removed
    assert removed.names == ("heads-0-2-4", "mlp-2", "attention-10")
    assert Removed.of(*removed.names) == removed
    with pytest.raises(TypeError, match="elements must be a frozenset of Element"):
        Removed({"mlp-1"})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", ["", "[]", '{"removed": []}', '{"schema_version": 2, "removed": []}', "{"])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"Removed.load: .*a.json must hold"):
        Removed.load(tmp_path / "a.json")


WRITTEN: list[tuple[str, tuple[str, ...], str]] = [
    ("llama", tuple(f"heads-{layer}-2-4" for layer in range(3)), "model"),
    ("llama", (*(f"neurons-{layer}-{7 * layer}-{7 * layer + 16}" for layer in range(3)),), "model"),
    ("llama", ("attention-0", "mlp-0", "heads-1-0-2", "heads-2-2-4"), "model"),
    ("llama", ("attention-1",), "setting"),
    ("llama", tuple(f"heads-{layer}-0-4" for layer in range(3)), "setting"),
    ("gpt2", tuple(f"neurons-{layer}-0-16" for layer in range(3)), "model"),
    ("opt", ("attention-2", "mlp-2", "neurons-0-0-8", "neurons-1-8-16"), "model"),
    ("bert", ("attention-0", "mlp-0"), "model"),
    ("bert", tuple(f"heads-{layer}-0-2" for layer in range(3)), "setting"),  # a config without head_dim
    ("vit", tuple(f"heads-{layer}-1-3" for layer in range(3)), "model"),
]


@pytest.mark.parametrize(("kind", "names", "form"), WRITTEN, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_written_is_what_was_measured(kind, names, form, tmp_path):
    removed, given = Removed.of(*names), inputs(kind)
    model = make(kind)
    with removed.apply(model):
        expected = output(model, given)
    assert removed.export(model, tmp_path) == form
    assert (tmp_path / SETTING).exists() == (form == "setting")
    auto: Any = AutoModelForCausalLM if kind in DECODERS else AutoModel
    if form == "model":
        again = auto.from_pretrained(tmp_path).eval()
    else:
        again = make(kind)
        Removed.load(tmp_path / SETTING).cut(again)
    close(output(again, given), expected)


@pytest.mark.parametrize(
    ("kind", "fields", "form"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "setting"),  # of which each layer has a scale of its own
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 3,
                   "use_sliding_window": True, "max_window_layers": 0}, "model"),
    ],
)  # fmt: skip
def test_layers_stay_what_they_were_when_others_are_gone(kind, fields, form, tmp_path):
    removed, given = Removed.of("attention-0", "mlp-0"), inputs(kind)
    model = make(kind, **fields)
    with removed.apply(model):
        expected = output(model, given)
    assert removed.export(model, tmp_path) == form
    close(output(model, given), expected)
    if form == "model":
        close(output(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), given), expected)


def test_a_config_that_cannot_say_it_is_left_as_it_is(tmp_path):
    model = make("bert")
    before = model.config.to_dict()
    Removed.of(*(f"heads-{layer}-0-2" for layer in range(3))).export(model, tmp_path)
    assert model.config.to_dict() == before


def test_trained_weights_go_on_in_a_model_that_was_cut_alike():
    removed, given = Removed(frozenset({Element("attention", 1), Element("heads", 0, 0, 2)})), inputs("llama")
    model = make("llama")
    removed.cut(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.01)
    again = make("llama")
    removed.cut(again)
    again.load_state_dict(model.state_dict())
    assert torch.equal(output(again, given), output(model, given))
