"""Neurons by the prompt's use of them, by loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.kv_caches.drafts import Griffin
from dynattn.pruning.structure.find import find
from tests.pruning.structure.models import LENGTH, NEURONS, inputs, make


@torch.no_grad()
def _read(model: Any, given: dict[str, Any]) -> list[torch.Tensor]:
    """What each output projection reads, (batch, tokens, neurons)."""
    seen: list[torch.Tensor] = []
    hooks = [
        layer.mlp.output.register_forward_hook(lambda _, args, out: seen.append(args[0]))  # type: ignore[union-attr]
        for layer in find(model).layers
    ]
    model(**given, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("keep", [0.25, 0.5, 1.0])
def test_the_neurons_that_the_prompt_uses_most_stay(kind, keep):
    model, given = make(kind), inputs(kind)
    given["attention_mask"][1, :3] = 0
    cheap = Griffin(keep).of(model, **given)
    positions = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)  # GPT-2's are learned
    before, more = _read(model, {**given, "position_ids": positions}), {"input_ids": given["input_ids"].flip(1)}
    dense = _read(model, more)
    with cheap(model):
        found = _read(model, more)
    assert all(torch.equal(a, b) for a, b in zip(_read(model, more), dense, strict=True))
    for layer, (rows, now) in enumerate(zip(before, found, strict=True)):
        score = [0.0] * NEURONS
        for sample in range(2):
            for token in range(3 * sample, LENGTH):
                row = rows[sample, token].double()
                for neuron, share in enumerate((row / row.norm()).tolist()):
                    score[neuron] += share**2
        kept = set(sorted(range(NEURONS), key=lambda j: (-score[j], j))[: round(keep * NEURONS)])
        zero = now.flatten(0, 1).eq(0).all(0)
        assert {j for j in range(NEURONS) if not zero[j]} == kept, layer
    assert torch.equal(found[0], dense[0] * (found[0] != 0))


def test_names_and_refusals():
    with pytest.raises(TypeError, match="Griffin: keep must be a float"):
        Griffin(1)
    model = make("llama")
    model.model.layers[1].mlp = torch.nn.Identity()
    with pytest.raises(ValueError, match="every layer must have an MLP of plain linear layers: layer 1"):
        Griffin().of(model, torch.ones(1, 3, dtype=torch.int64))
