"""Which models have layers that tokens can skip."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from dynattn.pruning.decoders import SUPPORTED, find
from tests.pruning.models import make
from tests.pruning.walks import decoder


@pytest.mark.parametrize("kind", SUPPORTED)
def test_the_layers_of_a_model_with_a_head_and_of_one_without(kind: str) -> None:
    model = decoder(kind, layers=2)
    found = find(model)
    assert (found.layers, found.runner, found.config) == (tuple(model.layers), model, model.config)


def test_a_head_is_looked_through() -> None:
    config = AutoConfig.for_model("llama", vocab_size=9, num_hidden_layers=2, hidden_size=8, num_attention_heads=2,
                                  intermediate_size=8)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    assert find(model).runner is model.model


def test_other_models_are_refused() -> None:
    wrong: Any = "llama"
    with pytest.raises(TypeError, match="model must be a Transformers model: got str"):
        find(wrong)
    with pytest.raises(ValueError, match=r"must be a decoder of type llama, .*: BertModel is a bert"):
        find(make("bert", layers=1))
    with pytest.raises(ValueError, match="Linear is a None"):
        find(nn.Linear(2, 2))
    model = decoder(layers=1)
    model.layers[0]._compiled_call_impl = model.layers[0].forward  # as model.layers[0].compile() leaves it
    with pytest.raises(ValueError, match="must not be compiled"):
        find(model)
