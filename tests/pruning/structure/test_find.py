"""Layers are found by what they are; what cannot be cut is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from dynattn.pruning.structure.find import find, size
from tests.pruning.structure.models import DECODERS, ENCODERS, HEADS, LAYERS, NEURONS, SHARED, WIDTH, make


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_every_layer_has_its_heads_and_neurons(kind):
    structure = find(make(kind))
    assert len(structure.layers) == LAYERS
    for layer in structure.layers:
        attention, mlp = layer.attention, layer.mlp
        assert (attention.heads, attention.heads // attention.kv_heads) == (HEADS, SHARED.get(kind, 1))
        assert size(attention.output) == (HEADS * attention.head_dim, WIDTH)
        assert mlp is not None
        assert mlp.neurons == NEURONS
        assert len(mlp.into) == (2 if kind in ("llama", "qwen3") else 1)
        after = kind in ("bert", "distilbert", "opt")  # families whose norm stands behind the sum
        assert (attention.norm is not None, mlp.norm is not None) == (after, after)


def test_an_mlp_as_wide_as_the_model_is_found():
    mlp = find(make("bert", intermediate_size=WIDTH)).layers[0].mlp
    assert mlp is not None
    assert size(mlp.output) == (WIDTH, WIDTH)
    assert mlp.norm is not None  # which stands beside the second of the two layers


def test_opt_with_norms_in_front_has_none_behind():
    assert find(make("opt", do_layer_norm_before=True)).layers[0].attention.norm is None


def _tiny(kind: str, **fields):
    return AutoModel.from_config(AutoConfig.for_model(kind, **({**DECODERS["llama"]} | fields)))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: _tiny("olmo2"), "weights besides the projections"),  # a norm over all heads
        (lambda: _tiny("albert", embedding_size=16), "every layer must have weights of its own"),
        (lambda: nn.Linear(3, 3), "one stack of layers"),
        (lambda: make("bert", is_decoder=True, add_cross_attention=True), "one stack of layers"),
    ],
)
def test_what_cannot_be_cut_is_refused(model, reason):
    with pytest.raises(ValueError, match=reason):
        find(model())


def test_adapters_and_other_things_are_refused():
    class Adapter(nn.Linear): ...

    model = make("llama")
    model.model.layers[0].self_attn.q_proj = Adapter(WIDTH, WIDTH)
    with pytest.raises(ValueError, match="one stack of layers"):
        find(model)
    with pytest.raises(TypeError, match="model must be a Transformers model"):
        find("llama")  # pyright: ignore[reportArgumentType]


def test_weights_of_all_heads_that_look_like_those_of_one_are_refused():
    model = make("llama")
    attention = model.model.layers[0].self_attn
    attention.sinks = nn.Parameter(torch.zeros(attention.head_dim))
    with pytest.raises(ValueError, match="weights besides the projections must be those of one head"):
        find(model)


def test_an_mlp_with_more_than_linear_layers_is_left_alone():
    model = make("llama")
    model.model.layers[1].mlp.inner_norm = nn.LayerNorm(NEURONS)
    layers = find(model).layers
    assert layers[1].mlp is None
    assert layers[0].mlp is not None
    model.model.layers[2].mlp.more = nn.Linear(WIDTH, 3)
    assert find(model).layers[2].mlp is None
