"""Blocks in the order in which they are tried, and their parts, which make them whole."""

from __future__ import annotations

import pytest
import torch

from dynattn.pruning.structure.elements import Element, left
from dynattn.pruning.structure.find import find
from dynattn.pruning.structure.tree import blocks, parts
from tests.pruning.structure.models import KINDS, SHARED, make


def test_blocks_come_by_kind_and_the_later_layers_first():
    names = [element.name for element in blocks(make("bert"))]
    assert names == ["attention-2", "attention-1", "attention-0", "mlp-2", "mlp-1", "mlp-0"]
    assert [element.name for element in blocks(make("bert"), "mlp")] == names[3:] + names[:3]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_make_their_block_whole_and_do_not_overlap(kind):
    model = make(kind)
    heads, neurons = parts(model, Element("attention", 1)), parts(model, Element("mlp", 1), groups=5)
    assert [(one.start, one.stop) for one in neurons] == [(0, 10), (10, 20), (20, 30), (30, 40), (40, 48)]
    assert {one.stop - one.start for one in heads} == {SHARED.get(kind, 1)}
    gone = left(find(model), [*heads, *neurons])[1]
    assert not gone.heads.any()
    assert gone.neurons is not None
    assert not gone.neurons.any()
    assert parts(model, heads[0]) == ()


def test_an_mlp_that_cannot_be_cut_is_no_block():
    model = make("llama")
    model.model.layers[1].mlp.more = torch.nn.Linear(3, 3)
    assert [element.name for element in blocks(model)][3:] == ["mlp-2", "mlp-0"]
    assert parts(model, Element("mlp", 1)) == ()


def test_what_is_no_block_is_refused():
    model = make("llama")
    for block, groups in ((Element("mlp", 99), 8), (Element("mlp", 0), 0), (Element("mlp", 0), -1)):
        with pytest.raises(ValueError, match="parts: groups must be at least 1, and the block one of 3 layers"):
            parts(model, block, groups)
    with pytest.raises(ValueError, match="blocks: first must be attention or mlp: got 'attn'"):
        blocks(model, "attn")  # pyright: ignore[reportArgumentType]
