"""A layer computes the tokens alone that run it, at their places; the others are bit for bit what they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from dynattn.integrations.transformers import register
from dynattn.pruning import FTP
from dynattn.pruning.decoders import SUPPORTED
from dynattn.pruning.skipping import Choice, Ran, Way, skipped
from tests.covering import half
from tests.pruning.models import close
from tests.pruning.walks import LENGTHS, decoder, texts, walk, watch


class Thirds(Way):
    """Layer l is skipped by every token whose place among the text's is l modulo 3, and by the shortest text whole."""

    def __init__(self, layers: int, alive: Tensor) -> None:
        self.runs = [(alive.cumsum(1) - 1) % 3 != layer % 3 for layer in range(layers)]
        self.runs[-1] = self.runs[-1] & (alive.sum(1, keepdim=True) > min(LENGTHS))
        self.seen: list[Ran] = []

    def choose(self, layer: int) -> Choice:
        return Choice(self.runs[layer])

    def attended(self, ran: Ran) -> None:
        self.seen.append(ran)


def thirds(layer: int, length: int) -> list[int]:
    if layer == 2 and length == min(LENGTHS):
        return []
    return [place for place in range(length) if place % 3 != layer % 3]


@pytest.mark.parametrize(
    ("kind", "implementation", "side"), half(SUPPORTED, ("sdpa", "eager", "dynattn:dense"), ("right", "left"))
)
def test_every_text_gets_what_its_tokens_get_alone(kind: str, implementation: str, side: str) -> None:
    register()
    model, given = decoder(kind), texts(side)
    model.set_attn_implementation(implementation)
    with skipped(model, Thirds, watches=True) as trace:
        seen = watch(model, given)
    alive = given["attention_mask"].bool()
    for layer, (before, after) in enumerate(seen):
        runs = Thirds(3, alive).runs[layer] & alive
        assert torch.equal(after[~runs], before[~runs])
        assert bool((after[runs] != before[runs]).any(-1).all())
    model.set_attn_implementation("sdpa")
    for sample, length in enumerate(LENGTHS):
        first = 0 if side == "right" else max(LENGTHS) - length
        expected = walk(model, seen[0][0][sample, alive[sample]], lambda at, n=length: thirds(at, n), first)
        close(seen[-1][1][sample, alive[sample]], expected)
        counts = [len(thirds(layer, length)) for layer in range(3)]
        assert trace.last.tokens[:, sample].tolist() == counts
        assert trace.last.skipped[sample] == pytest.approx(1 - sum(counts) / (3 * length))
        assert [work.notes["pairs"][sample] for work in trace.last.layers] == [4 * n * (n + 1) // 2 for n in counts]
    assert [work.length for work in trace.last.layers] == [len(thirds(layer, 13)) for layer in range(3)]
    assert trace.last.depth[~alive].sum() == 0


def test_layers_compute_on_shorter_tensors_and_without_a_mask_where_texts_are_even() -> None:
    model, given = decoder(), {"input_ids": texts()["input_ids"][:1]}
    shapes, masks = [], []
    for layer in model.layers:
        layer.mlp.register_forward_hook(lambda _, args, out: shapes.append(out.shape[1]))
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
    with torch.no_grad(), skipped(model, Thirds):
        model(**given)
    assert shapes == [len(thirds(layer, 13)) for layer in range(3)]
    assert masks == [None] * 3


@pytest.mark.parametrize("side", ["right", "left"])
def test_where_every_token_runs_the_model_is_what_it_was(side: str) -> None:
    model, given = decoder(), texts(side)
    with torch.no_grad():
        expected = model(**given).last_hidden_state
        with skipped(model, lambda layers, alive: Way()) as trace:
            assert torch.equal(model(**given).last_hidden_state, expected)
    assert trace.last.tokens.tolist() == [list(LENGTHS)] * 3
    assert trace.last.skipped.tolist() == [0, 0, 0]


def test_where_no_token_runs_the_layers_do_nothing() -> None:
    model, given = decoder(), texts()
    with torch.no_grad(), FTP(1.0).apply(model) as trace:
        found = model(**given).last_hidden_state
        assert torch.equal(found, model.norm(model.embed_tokens(given["input_ids"])))
    assert trace.last.skipped.tolist() == [1, 1, 1]


def test_a_way_sees_the_attention_of_those_that_run() -> None:
    model, given = decoder(), texts()
    ways: list[Thirds] = []

    def begin(layers: int, alive: Tensor) -> Way:
        ways.append(Thirds(layers, alive))
        return ways[-1]

    with torch.no_grad(), skipped(model, begin, watches=True):
        model(**given)
    alive = given["attention_mask"].bool()
    for layer, ran in enumerate(ways[0].seen):
        assert ran.layer == layer
        assert ran.query.shape == (3, 4, ran.position.shape[1], 8)
        assert ran.key.shape == (3, 2, ran.position.shape[1], 8)
        for sample in range(3):
            wanted = (ways[0].runs[layer] & alive)[sample].nonzero().flatten().tolist()
            assert ran.position[sample, ran.runs[sample]].tolist() == wanted


def test_gradients_flow_and_stay_finite_where_a_text_skips_a_layer() -> None:
    model, given = decoder(), texts()
    with skipped(model, Thirds):
        out = model(**given).last_hidden_state[given["attention_mask"].bool()]
    out.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert bool(weight.grad.isfinite().all()), name


def test_exit_restores_the_model_after_an_error_too() -> None:
    model, given = decoder(), texts()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        expected = model(**given).last_hidden_state
        hook = model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), skipped(model, Thirds, watches=True):
            model(**given)
        hook.remove()
        assert torch.equal(model(**given).last_hidden_state, expected)
    assert {name: vars(module).keys() for name, module in model.named_modules()} == {
        name: kept.keys() for name, kept in before.items()
    }


def test_a_model_with_a_head_runs_without_a_cache() -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=60, num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=48,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model, given = AutoModelForCausalLM.from_config(config).eval(), texts(lengths=(6,))
    with torch.no_grad(), FTP(0.5).apply(model) as trace:
        assert model(**given).past_key_values is None
        assert trace.last.tokens.tolist() == [[3], [3]]
        assert model(**given, labels=given["input_ids"]).loss.isfinite()
        out = model.generate(**given, max_new_tokens=2, use_cache=False, do_sample=False)
        assert out.shape == (1, 8)
        assert trace.last.tokens.tolist() == [[4], [4]]  # of seven
        with pytest.raises(ValueError, match=r"no key-value cache, .*: got DynamicCache; call the model without"):
            model.generate(**given, max_new_tokens=2)


def test_what_cannot_be_skipped_is_refused() -> None:
    model, given = decoder(), texts()
    with skipped(model, Thirds):
        with pytest.raises(ValueError, match="is being pruned already"), skipped(model, Thirds):
            pass
        with pytest.raises(ValueError, match=r"attention_mask must be \(batch, length\), .*: got \(1, 1, 13, 13\)"):
            model(given["input_ids"], torch.ones(1, 1, 13, 13, dtype=torch.bool))
        with pytest.raises(RuntimeError, match="must not be copied"):
            copy.deepcopy(model)
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(ValueError, match="attn_implementation must be 'sdpa', 'eager' or 'dynattn"):
            model(**given)


def test_a_forward_that_begins_inside_ends_with_the_layers_own_code() -> None:
    """A replaced forward that someone still holds calls the module's own once the context is over."""
    model, given = decoder(), texts()
    with skipped(model, Thirds):
        held: nn.Module = model.layers[0].forward
    states = torch.randn(1, 5, 32, dtype=torch.float64)
    rotary = model.rotary_emb(states, position_ids=torch.arange(5)[None])
    with torch.no_grad():
        assert torch.equal(
            held(states, position_embeddings=rotary), model.layers[0](states, position_embeddings=rotary)
        )
        assert model(**given).last_hidden_state.isfinite().all()


def test_one_mask_for_all_samples_is_that_of_each() -> None:
    model, given = decoder("llama"), texts("right")
    ids = given["input_ids"]
    with torch.no_grad(), FTP(0.4).apply(model):
        expected = model(input_ids=ids, use_cache=False).last_hidden_state
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids[:1]), use_cache=False).last_hidden_state
    assert torch.equal(found, expected)
