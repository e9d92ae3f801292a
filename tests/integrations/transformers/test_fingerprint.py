"""What tells models apart, and what does not."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import Fingerprint
from tests.integrations.transformers.tiny import tiny


def of(model) -> Fingerprint:
    return Fingerprint.of(model, 2)


def test_it_is_the_same_for_the_same_model():
    model = tiny("bert")
    assert of(model) == of(copy.deepcopy(model))
    assert of(model).difference(of(model)) is None


@pytest.mark.parametrize("part", ["embeddings.word_embeddings", "encoder.layer.1.output.dense", "pooler.dense"])
def test_training_of_any_part_is_seen(part):
    model, trained = tiny("bert"), tiny("bert")
    for parameter in trained.get_submodule(part).parameters():
        parameter.data += 1e-4 * torch.rand_like(parameter)
    assert "weights differ" in str(of(model).difference(of(trained)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cast_is_the_same_model_both_ways(dtype):
    model = tiny("bert")
    cast = copy.deepcopy(model).to(dtype)
    assert of(model).difference(of(cast)) is None
    assert of(cast).difference(of(model)) is None
    assert of(cast).difference(of(copy.deepcopy(cast).float())) is None


def test_tied_weights_are_told_alike_before_and_after_they_are_tied():
    model = tiny("llama", tie_word_embeddings=True)
    apart = copy.deepcopy(model)
    apart.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert of(model) == of(apart)


def test_weights_that_are_elsewhere_are_not_compared():
    model, broken = tiny("bert"), tiny("bert").to("meta")
    assert of(model).difference(of(broken)) is None
    assert of(broken).difference(of(model)) is None


def test_training_leaves_no_trace_in_the_configs_words():
    model = tiny("bert")
    renamed = copy.deepcopy(model)
    renamed.config.id2label = {0: "size", 1: "heads"}
    renamed.config.label2id = {"size": 7, "heads": 9}
    renamed.config.name_or_path = "elsewhere"
    assert of(model).difference(of(renamed)) is None


@pytest.mark.parametrize("context", [4000001, 10**400])
def test_large_numbers_of_a_config_are_said_whole(context):
    model = tiny("bert")
    model.config.max_position_embeddings = 4000000
    here = of(model)
    other = replace(here, config={**here.config, "max_position_embeddings": context})
    assert other.difference(here) == f"config.max_position_embeddings is {context} in the file and 4000000 here"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("weights", "x", "base64"), ("weights", "AAAA", "base64"), ("dtype", "int", "dtype must be")],
)
def test_damage_is_refused(field, value, said):
    told = vars(of(tiny("bert"))) | {field: value}
    with pytest.raises(ValueError, match=said):
        Fingerprint(**told)
