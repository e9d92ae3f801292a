"""Linear layers are named by what they are; what cannot be named is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
from transformers import AutoConfig, AutoModel

from dynattn.sparsity import WINA, Sparsity
from dynattn.sparsity.sites import PARTS, norms, places
from tests.pruning.structure.models import LAYERS, make
from tests.sparsity.oracle import PATHS, columns


@pytest.mark.parametrize("kind", PATHS)
def test_every_linear_layer_has_its_name(kind):
    model = make(kind)
    found = {place.name: place.module for place in places(model)}
    expected = {
        f"{layer}.{projection}": model.get_submodule(path.format(layer))
        for layer in range(LAYERS)
        for projection, path in PATHS[kind].items()
    }
    assert found.keys() == expected.keys()
    assert all(found[name] is module for name, module in expected.items())
    for module in found.values():
        torch.testing.assert_close(norms(module), columns(module).norm(dim=0))


def test_dinov2_and_qwen_are_named_too():
    config = AutoConfig.for_model(
        "dinov2", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
        use_swiglu_ffn=True,
    )  # fmt: skip
    found = [place.projection for place in places(AutoModel.from_config(config))]
    assert found == ["q", "k", "v", "o", "gate", "up", "down"]
    assert [place.projection for place in places(make("qwen3"))][:7] == found


def test_what_reads_one_input_is_told():
    together: dict[object, list[str]] = {}
    for place in places(make("llama"), lambda layer, projection: layer == 1):
        together.setdefault(place.read, []).append(place.name)
    assert list(together.values()) == [["1.q", "1.k", "1.v"], ["1.o"], ["1.gate", "1.up"], ["1.down"]]


def test_layers_that_cannot_be_named_are_refused():
    model = make("llama")
    for layer in model.model.layers:  # the names of some families: nobody knows which of them is the gate
        layer.mlp.w1, layer.mlp.w3 = layer.mlp.gate_proj, layer.mlp.up_proj
        del layer.mlp.gate_proj, layer.mlp.up_proj
        order = ("w1", "w3", "down_proj")
        layer.mlp._modules = {name: layer.mlp._modules[name] for name in order}
    with pytest.raises(ValueError, match=r"one must be called gate and the other up: those of layer 0 are w1, w3;"):
        places(model)
    assert len(places(model, lambda layer, projection: projection not in PARTS["mlp"])) == 4 * LAYERS
    with pytest.raises(ValueError, match="the model must have one stack of layers"):
        places(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(TypeError, match="model must be a Transformers model"):
        places("llama")  # pyright: ignore[reportArgumentType]


def test_an_mlp_of_other_layers_is_refused_where_it_is_asked_for():
    model = make("bert")
    for layer in model.encoder.layer:
        layer.intermediate.extra = nn.Linear(48, 48)
        layer.intermediate.more = nn.Linear(48, 48)
    with pytest.raises(
        ValueError, match=r"the MLP must be two or three plain linear layers: that of layer 0, a BertLayer"
    ):
        places(model)
    with Sparsity(qkv=WINA(0.5), out=WINA(0.5)).apply(model) as sites:
        assert len(sites) == 4 * LAYERS
