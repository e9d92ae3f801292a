"""Tokens really leave, the others get what they would get alone, and the model is as it was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertForSequenceClassification

from dynattn.integrations.transformers import register
from dynattn.pruning import LTP, Course, Decision, FirstTokens, Pruning, RandomTokens, SpAtten, Start
from dynattn.pruning.layout import SUPPORTED, find
from tests.pruning.models import TEXT, VISION, close, ends, inputs, make, walk


@dataclass(frozen=True)
class Thirds(Pruning):
    """After layer l, every token whose place is l modulo 3 leaves: as good as any to test the engine."""

    @property
    def name(self) -> str:
        return "thirds"

    @classmethod
    def from_name(cls, name):
        return cls() if name == "thirds" else None

    def course(self, start: Start) -> Course:
        class Drop(Course):
            def after(self, seen):
                return Decision(seen.position % 3 != seen.layer % 3)

        return Drop()


def _thirds(leading):
    return lambda layer, places, _: [p for p in places if p < leading or p % 3 != layer % 3]


@pytest.mark.parametrize("kind", SUPPORTED)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_every_sample_gets_what_it_would_get_alone(kind, implementation):
    model = make(kind)
    model.set_attn_implementation(implementation)
    given = inputs(kind)
    lengths = given["attention_mask"].sum(1).tolist() if kind in TEXT else None
    with Thirds().apply(model) as trace:
        first, last = ends(model, given)
    leading = find(model).leading
    for sample in range(3):
        count = lengths[sample] if lengths else first.shape[1]
        expected = walk(model, first[sample, :count], _thirds(leading))
        close(last[sample, :count], expected)
    tokens, places = trace.last.tokens[:, 0], torch.arange(first.shape[1])
    assert tokens.tolist()[:2] == [first.shape[1], int(((places % 3 != 0) | (places < leading)).sum())]
    assert [work.length for work in trace.last.layers] == tokens.tolist()  # the first sample is the longest


def test_layers_compute_on_shorter_tensors():
    model, given, shapes = make("bert"), inputs("bert"), []
    for block in find(model).layers:
        block.value.register_forward_hook(lambda _, args, out: shapes.append(out.shape[1]))
    with RandomTokens(0.3).apply(model):
        model(**given)
    assert shapes == [17, 12, 8, 6]


@pytest.mark.parametrize("kind", ["bert", "roberta-prelayernorm", "dinov2", "deit"])
@pytest.mark.parametrize("method", [RandomTokens(1.0), SpAtten(1.0, heads=0.999), Thirds()])
def test_exit_restores_the_model(kind, method):
    model, given = make(kind), inputs(kind)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        expected = model(**given).last_hidden_state
        with method.apply(model):
            model(**given)
            with pytest.raises(ZeroDivisionError), _broken(find(model).layers[1].value):
                model(**given)
            assert model.config._attn_implementation == "sdpa"
            again = model(**given).last_hidden_state
        with pytest.raises(ZeroDivisionError), method.apply(model), _broken(find(model).layers[2].output):
            model(**given)
        after = model(**given).last_hidden_state
    assert torch.equal(expected, after)
    assert torch.isfinite(again).all()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()} == hooks
    assert {name: vars(module).keys() for name, module in model.named_modules()} == {
        name: kept.keys() for name, kept in before.items()
    }


class _broken:
    """A module that fails, for a while."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self):
        self.hook = self.module.register_forward_pre_hook(lambda *_: 1 / 0)

    def __exit__(self, *_):
        self.hook.remove()


@pytest.mark.parametrize("kind", ["bert", "dinov2", "vit"])
def test_ratio_one_is_dense(kind):
    model, given = make(kind), inputs(kind)
    with torch.no_grad():
        expected = model(**given).last_hidden_state
        for method in (RandomTokens(1.0), FirstTokens(1.0), SpAtten(1.0)):
            with method.apply(model) as trace:
                assert torch.equal(model(**given).last_hidden_state, expected)
            assert (trace.last.tokens == trace.last.tokens[0]).all()


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "dynattn:dense"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", [RandomTokens(0.4), FirstTokens(0.4), SpAtten(0.4, heads=0.5), LTP(0.09)])
def test_a_padded_batch_equals_each_sample_alone(method, side, implementation):
    register()
    model = make("bert")
    model.set_attn_implementation(implementation)
    alive = torch.arange(17) < torch.tensor([17, 12, 5])[:, None]
    alive = alive if side == "right" else alive.flip(1)
    states = torch.randn(3, 17, 32)
    mask = alive[:, None, None]
    if implementation == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad(), method.apply(model) as trace:
        together = model.encoder(states, attention_mask=mask).last_hidden_state
        counts = trace.last.tokens
        for sample in range(3):
            alone = model.encoder(states[sample : sample + 1, alive[sample]]).last_hidden_state[0]
            close(together[sample, alive[sample]], alone)
            assert trace.last.tokens[:, 0].tolist() == counts[:, sample].tolist()
    assert (counts[-1] < counts[0])[:2].all()


@pytest.mark.parametrize("kind", ["bert", "dinov2_with_registers", "deit"])
def test_leading_tokens_and_padding(kind):
    model, given = make(kind), inputs(kind)

    @dataclass(frozen=True)
    class Nobody(Thirds):
        def course(self, start):
            class Drop(Course):
                def after(self, seen):
                    return Decision(torch.zeros_like(seen.alive))

            return Drop()

    with Nobody().apply(model) as trace:
        model(**given)
    leading = find(model).leading
    assert leading == {"bert": 1, "dinov2_with_registers": 5, "deit": 2}[kind]
    assert trace.last.survivors.sum(1).tolist() == [leading] * 3
    assert trace.last.survivors[:, :leading].all()
    if kind == "bert":
        assert (trace.last.depth[given["attention_mask"] == 0] == 0).all()
        assert (trace.last.depth[given["attention_mask"] == 1] >= 1).all()


def test_pruned_tokens_keep_their_state_and_hidden_states_are_whole():
    model, given = make("bert"), inputs("bert")
    with torch.no_grad(), Thirds().apply(model) as trace:
        states = model(**given, output_hidden_states=True).hidden_states
    assert {state.shape for state in states} == {(3, 17, 32)}
    for depth in range(1, 4):
        left = trace.last.depth == depth
        assert left.any()
        assert torch.equal(states[depth][left], states[-1][left])


def test_zeros_for_pruned_tokens():
    model, given = make("bert"), inputs("bert")
    with torch.no_grad():
        with Thirds().apply(model) as trace:
            states = model(**given).last_hidden_state
        with Thirds().apply(model, zero_pruned=True):
            zeroed = model(**given).last_hidden_state
        with RandomTokens(1.0).apply(model, zero_pruned=True):
            whole = model(**given).last_hidden_state
        assert torch.equal(whole, model(**given).last_hidden_state)
    survivors = trace.last.survivors
    assert torch.equal(zeroed[survivors], states[survivors])
    assert not zeroed[~survivors].any()
    assert states[~survivors].any()


def test_a_head_on_top_and_a_batch_of_nothing_pruned():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=60)
    model, given = BertForSequenceClassification(config).eval(), inputs("bert")
    with torch.no_grad(), FirstTokens(0.5).apply(model) as trace:
        logits = model(**given).logits
        assert logits.shape == (3, 2)
    assert trace.last.tokens[-1].tolist() == [9, 6, 3]
    assert trace.last.keep_ratio[0] == pytest.approx((17 + 13 + 9) / 51)


@pytest.mark.parametrize(
    "method",
    [SpAtten(0.5), SpAtten(0.5, values=0.5, bits=(8, 4)), LTP(0.05), RandomTokens(0.5)],
    ids=lambda method: method.name,
)
def test_a_sample_that_is_all_padding(method):
    model, given = make("bert"), inputs("bert", lengths=(9, 0, 5))
    with torch.no_grad():
        with method.apply(model) as trace:
            out = model(**given).last_hidden_state
        tokens = trace.last.tokens
        with method.apply(model):
            others = model(**{name: x[[0, 2]] for name, x in given.items()}).last_hidden_state
    assert torch.isfinite(out).all()
    assert tokens[:, 1].eq(0).all()
    close(out[0], others[0])
    close(out[2, :5], others[1, :5])


def test_gradients_flow_through():
    model, given = make("bert"), inputs("bert")
    weights = torch.randn(32)  # the plain sum of what a layer norm gives is 0, whatever comes before
    with SpAtten(0.4).apply(model):
        (model(**given).last_hidden_state[:, 0] * weights).sum().backward()
    assert all(layer.attention.self.query.weight.grad.abs().sum() > 0 for layer in model.encoder.layer)


def test_gate_scales_the_output():
    model, given = make("bert", layers=1), inputs("bert")

    @dataclass(frozen=True)
    class Half(Thirds):
        def course(self, start):
            class Gate(Course):
                def after(self, seen):
                    return Decision(gate=torch.full_like(seen.hidden[..., 0], 0.5))

            return Gate()

    with torch.no_grad():
        expected = model(**given).last_hidden_state
        with Half().apply(model):
            torch.testing.assert_close(model(**given).last_hidden_state, expected / 2)


def test_trace_calls_back():
    model, given, seen = make("bert"), inputs("bert"), []
    with FirstTokens(0.5).apply(model) as trace:
        trace.on_forward = seen.append
        model(**given)
        model(**given)
    assert len(seen) == 2
    assert seen[1] is trace.last


def test_what_is_refused():
    model, given = make("bert"), inputs("bert")
    method = RandomTokens(0.5)
    with method.apply(model), pytest.raises(ValueError, match="being pruned already"), method.apply(model):
        pass
    with method.apply(model), pytest.raises(ValueError, match="same for every query"):
        model(input_ids=given["input_ids"], attention_mask=torch.ones(3, 1, 17, 17).tril().bool())
    with method.apply(model), pytest.raises(ValueError, match="given position_ids too"):
        model(**given, position_ids=torch.arange(17)[None])
    model.config._attn_implementation = "eager"
    with method.apply(model), pytest.raises(ValueError, match="weights cannot be returned"):
        model(**given, output_attentions=True)
    model.config.output_attentions = True
    with method.apply(model), pytest.raises(ValueError, match="weights cannot be returned"):
        model(**given)
    model.config.output_attentions = False
    model.config._attn_implementation = "flex_attention"
    with method.apply(model), pytest.raises(ValueError, match="attn_implementation must be"):
        find(model).layers[0].layer(torch.zeros(1, 4, 32))
    model.config._attn_implementation = "sdpa"
    model.gradient_checkpointing_enable()
    with method.apply(model.train()), pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        model(**given)


def test_models_that_cannot_be_pruned():
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with pytest.raises(ValueError, match="is a esm"):  # rotary positions inside attention
        find(AutoModel.from_config(AutoConfig.for_model("esm", vocab_size=40, pad_token_id=1, **tiny)))
    with pytest.raises(ValueError, match="must have one stack"):
        find(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model must be a Transformers model: got str"), SpAtten(0.5).apply("bert"):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="must be an encoder"):
        find(AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=40, is_decoder=True, **tiny)))
    compiled = make("bert")
    compiled.compile()
    for model in (compiled, torch.compile(make("bert"))):
        assert isinstance(model, nn.Module)
        with pytest.raises(ValueError, match="must not be compiled"):
            find(model)
    assert set(VISION) <= set(SUPPORTED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, given = make("bert").to(dtype), inputs("bert")
    for method in (SpAtten(0.5, heads=0.5), SpAtten(0.5, values=0.5, bits=(6, 4)), LTP(0.05)):
        with torch.no_grad(), method.apply(model) as trace:
            out = model(**given).last_hidden_state
        assert out.dtype == dtype
        assert torch.isfinite(out).all()
        assert trace.last.tokens[-1, 0] < 17


def test_a_wrong_decision():
    @dataclass(frozen=True)
    class Wrong(Thirds):
        def course(self, start):
            class Course_(Course):
                def after(self, seen):
                    return Decision(seen.alive[:, :2])

            return Course_()

    model = make("bert")
    with Wrong().apply(model), pytest.raises(ValueError, match="must be bool of shape"):
        model(**inputs("bert"))
