"""Slicing gives what zeros give, with smaller weights, in every form of model; generation goes on."""

from __future__ import annotations

import pytest
import torch

from dynattn.pruning.structure.cut import cut
from dynattn.pruning.structure.elements import Element
from dynattn.pruning.structure.find import find, size
from dynattn.pruning.structure.masked import masked
from tests.pruning.structure.models import KINDS, LAYERS, NEURONS, SHARED, close, inputs, make, output

MIXTURES = {
    "nothing": (),
    "parts": ("heads-0-0-2", "neurons-0-0-16", "neurons-2-17-48", "heads-2-2-4"),
    "blocks": ("attention-0", "mlp-2"),
    "all parts of a block": ("heads-1-0-4", "neurons-1-0-48", "mlp-0"),
    "a layer": ("attention-1", "mlp-1", "heads-2-0-2"),
    "the first layers": ("attention-0", "mlp-0", "attention-1", "mlp-1", "heads-1-0-2"),
    "every block": tuple(f"{kind}-{layer}" for kind in ("attention", "mlp") for layer in range(LAYERS)),
}


_OF = {"llama": tuple(MIXTURES), "gpt2": ("parts", "all parts of a block", "a layer"), "bert": tuple(MIXTURES)[1:5]}
_OTHERS = ("parts", "a layer")


@pytest.mark.parametrize(
    ("kind", "mixture"),
    [(kind, one) for kind in (*KINDS, "qwen3") for one in _OF.get(kind, _OTHERS)],
)
def test_the_cut_model_equals_the_masked_one(kind, mixture):
    model, given, names = make(kind), inputs(kind), MIXTURES[mixture]
    elements = [Element.from_name(name) for name in names]
    before = sum(weight.numel() for weight in model.parameters())
    with masked(model, elements):
        expected = output(model, given)
    cut(model, elements)
    close(output(model, given), expected)
    after = sum(weight.numel() for weight in model.parameters())
    assert (after < before) == bool(names)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_as_small_as_what_is_left(kind):
    model, share = make(kind), SHARED.get(kind, 1)
    cut(model, [Element("heads", 1, 0, share), Element("neurons", 1, 7, 40)])
    attention, mlp = find(model).layers[1].attention, find(model).layers[1].mlp
    assert (attention.heads, attention.kv_heads) == (4 - share, 4 // share - 1)
    assert mlp is not None
    assert mlp.neurons == NEURONS - 33
    assert all(size(module) == (32, NEURONS - 33) for module in mlp.into)
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "bert", "opt"])
def test_a_layer_of_which_nothing_is_left_leaves_the_model(kind):
    model, given = make(kind), inputs(kind)
    parts = cut(model, [Element("attention", 1), Element("mlp", 1)])
    assert len(parts) == len(find(model).layers) == model.config.num_hidden_layers == LAYERS - 1
    assert output(model, given).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("llama", ("attention-0", "heads-2-0-2")),
        ("llama", ("attention-0", "mlp-0", "attention-2")),
        ("gpt2", ("attention-0", "heads-2-0-2")),
    ],
)
def test_a_cut_decoder_reads_with_a_cache_as_without(kind, names):
    model, ids = make(kind), inputs(kind)["input_ids"]
    cut(model, [Element.from_name(name) for name in names])
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        cache, out = None, []
        for piece in (ids[:, :4], ids[:, 4:5], ids[:, 5:]):
            found = model(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            out.append(found.logits)
    close(torch.cat(out, dim=1), whole)


def test_layers_of_two_kinds_keep_what_they_are():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = make("qwen3", layer_types=kinds, sliding_window=3, use_sliding_window=True, max_window_layers=0)
    elements = [Element("attention", 0), Element("mlp", 0)]
    given = inputs("qwen3")
    with masked(model, elements):
        expected = output(model, given)
    cut(model, elements)
    assert model.config.layer_types == kinds[1:]
    close(output(model, given), expected)


def test_a_cut_model_trains():
    model, given = make("llama"), inputs("llama")
    cut(model, [Element("attention", 1), Element("neurons", 0, 0, 16), Element("heads", 2, 0, 2)])
    model(**given, labels=given["input_ids"]).loss.backward()
    alone = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert alone == {"model.layers.1.input_layernorm.weight"}  # in front of the attention that is gone


def test_a_post_norm_that_is_not_known_keeps_its_layer():
    model, given = make("bert"), inputs("bert")
    for layer in model.encoder.layer:  # the same norms under another name, and in the same place
        layer.output.register_forward_hook(lambda _, args, out: out * 2)
    elements = [Element("attention", 1), Element("mlp", 1)]
    with masked(model, elements):
        expected = output(model, given)
    assert len(cut(model, elements)) == LAYERS
    close(output(model, given), expected)
