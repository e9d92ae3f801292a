"""Linear layers leave out what methods leave out, held to masks by hooks; and then as before."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from dynattn.pruning import SpAtten
from dynattn.sparsity import (
    CHESS,
    TEAL,
    WINA,
    ActivationSparsity,
    Calibrated,
    Magnitude,
    NMActivations,
    Site,
    Sparsity,
    observing,
)  # fmt: skip
from tests.pruning.structure.models import LAYERS, close, inputs, make, output
from tests.sparsity.oracle import PATHS, columns, groups, largest, masked, rows

TOGETHER = (("q", "k", "v"), ("gate", "up"))
THRESHOLDS = {
    f"{layer}.{name}": (0.05 * (layer + 1) + 0.01 * len(name),)
    for layer in range(LAYERS)
    for name in ("q", "k", "v", "qkv", "o", "gate", "up", "down", "in", "out")
}


def _norms(model: Any, kind: str, layer: int, projection: str) -> Tensor:
    """Of all weights that read the same input."""
    names = next((names for names in TOGETHER if projection in names), (projection,))
    modules = [model.get_submodule(PATHS[kind][name].format(layer)) for name in names]
    return torch.cat([columns(module) for module in modules]).norm(dim=0)


def _rule(model: Any, kind: str, method: ActivationSparsity):
    def rule(layer: int, projection: str, module: nn.Module, x: Tensor) -> Tensor:
        if isinstance(method, NMActivations):
            weights = _norms(model, kind, layer, projection) if method.norm else 1
            n, m, stride = method.n, method.m, method.stride
            return rows(x.abs() * weights, lambda row: groups(row, n, m, stride))
        if isinstance(method, WINA):
            scores, count = x.abs() * columns(module).norm(dim=0), round(method.keep_ratio * x.shape[1])
            return rows(scores, lambda row: largest([(size, i) for i, size in enumerate(row)], count))
        return x.abs() > THRESHOLDS[f"{layer}.{projection}"][0]

    return rule


def _applied(method: ActivationSparsity, model: Any):
    return Calibrated(method, THRESHOLDS).apply(model) if method.needs_thresholds else method.apply(model)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("llama", NMActivations(2, 4)), ("vit", NMActivations(2, 4)),
        ("llama", NMActivations(3, 8, 2, True)), ("gpt2", NMActivations(3, 8, 2, True)),
        ("bert", NMActivations(3, 8, 2, True)), ("gpt2", WINA(0.4)), ("vit", WINA(0.4)), ("bert", TEAL(0.5)),
        ("llama", TEAL(0.5)),
    ],
    ids=str,
)  # fmt: skip
def test_the_model_is_masked_and_then_exactly_as_before(kind, method):
    model, given = make(kind), inputs(kind)
    parameters = dict(model.named_parameters())
    before = {name: (weight.detach().clone(), weight.stride()) for name, weight in parameters.items()}
    dense = output(model, given)
    with masked(model, kind, _rule(model, kind, method)):
        expected = output(model, given)
    with _applied(method, model) as sites:
        close(output(model, given), expected)
    assert len(sites) == LAYERS * len(PATHS[kind])
    assert float((expected - dense).abs().max()) > 1e-2
    assert all(weight is parameters[name] for name, weight in model.named_parameters())
    for name, weight in parameters.items():
        assert torch.equal(weight, before[name][0])
        assert weight.stride() == before[name][1]
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(output(model, given), dense)


@pytest.mark.parametrize("method", [NMActivations(4, 4), WINA(1.0), TEAL(1.0), CHESS(1.0)], ids=lambda one: one.name)
def test_keeping_everything_is_dense(method):
    model, given = make("llama"), inputs("llama")
    expected = output(model, given)
    with method.apply(model) as sites:
        assert sites == ()
        assert torch.equal(output(model, given), expected)


@pytest.mark.parametrize(
    "method", [NMActivations(2, 4, norm=True), WINA(0.4), TEAL(0.5), CHESS(0.5)], ids=lambda one: one.name
)
def test_a_choice_depends_on_its_token_alone(method):
    """Not on padding, on the rest of a batch, on the order of tokens, or on how a text is cut."""
    model, ids = make("llama"), inputs("llama")["input_ids"]
    with _applied(method, model), torch.no_grad():
        whole = model(ids).logits
        close(model(ids[1:]).logits, whole[1:])
        first = model(ids[:, :3], use_cache=True)
        rest = model(ids[:, 3:], past_key_values=first.past_key_values)
        close(torch.cat([first.logits, rest.logits], 1), whole)
        padded = torch.nn.functional.pad(ids, (2, 0))
        mask = (torch.arange(padded.shape[1]) >= 2).long().expand(2, -1)
        close(model(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, 2:], whole)
        layer = model.model.layers[0].mlp
        x, order = torch.randn(1, 9, 32), torch.randperm(9)
        close(layer(x[:, order]), layer(x)[:, order])


def test_what_a_method_writes_is_what_it_reads_at_once():
    """Decoding with a cache, token by token, as generate does it."""
    model, ids = make("llama"), inputs("llama")["input_ids"]
    with WINA(0.5).apply(model), torch.no_grad():
        written = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        again = model(written[:, :-1]).logits[:, ids.shape[1] - 1 :].argmax(-1)
    assert torch.equal(again, written[:, ids.shape[1] :])
    dense = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert not torch.equal(written, dense)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("llama", NMActivations(8, 16, norm=True)), ("gpt2", NMActivations(1, 2)), ("bert", TEAL(0.5)),
        ("bert", CHESS(0.5)), ("llama", NMActivations(3, 8, 2)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("tokens", [1, 8, 40])
def test_kernels_choose_what_the_method_says(kind, method, tokens):
    """Few tokens and many; watched or not."""
    torch.manual_seed(0)
    model = make(kind)
    linear = model.get_submodule(PATHS[kind]["down" if kind == "llama" else "out"].format(0))
    x = torch.randn(*((2, tokens // 2) if tokens > 1 else (1,)), columns(linear).shape[1])
    keeps: list[Tensor] = []
    with torch.no_grad(), _applied(method, model):
        found = linear(x)
        with observing(lambda one: keeps.append(one.keep)):
            assert torch.equal(linear(x), found)
    (keep,) = keeps
    assert 0 < float(keep.float().mean()) < 1
    kept = x.flatten(0, -2).where(keep, 0)
    close(found.flatten(0, -2), torch.nn.functional.linear(kept, columns(linear), linear.bias))


def test_autocast_changes_the_product_and_not_the_choice():
    model, x, keeps = make("llama"), torch.randn(40, 48), []
    linear = model.get_submodule(PATHS["llama"]["down"].format(0))
    with torch.no_grad(), NMActivations(2, 4).apply(model):
        with observing(lambda one: keeps.append(one.keep)):
            linear(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = linear(x)
    assert found.dtype == torch.bfloat16
    want = torch.nn.functional.linear(x.where(keeps[0], 0), linear.weight, linear.bias)
    torch.testing.assert_close(found.float(), want, rtol=0.05, atol=0.05)


def test_a_state_dict_holds_the_same_weights_meanwhile():
    model = make("gpt2")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with NMActivations(8, 16).apply(model):
        meanwhile = model.state_dict()
    assert list(meanwhile) == list(before)
    assert all(torch.equal(weight, before[name]) for name, weight in meanwhile.items())


def test_a_choice_of_many_tokens_is_made_once_and_of_few_inside(monkeypatch):
    from dynattn.kernels import cpu
    from dynattn.kernels.cpu import runner

    if not cpu.is_available():
        pytest.skip("the kernels are not there")
    ran: list[str] = []
    run = runner.run
    monkeypatch.setattr(runner, "run", lambda name, args: (ran.append(name), run(name, args))[1])
    model = make("llama")
    with torch.no_grad(), NMActivations(2, 4).apply(model):
        for tokens, choices in ((5, 0), (40, 2)):
            ran.clear()
            model(torch.randint(2, 50, (1, tokens)))
            assert ran.count("linear_rows") == 7 * LAYERS
            assert ran.count("linear_choice") == choices * LAYERS


def test_layers_that_read_one_input_make_one_choice():
    calls: list[str] = []

    class Counted(ActivationSparsity):
        shares_choice = True
        name = "counted"  # pyright: ignore[reportAssignmentType]
        keeps_everything = False  # pyright: ignore[reportAssignmentType]

        @classmethod
        def from_name(cls, name):
            return None

        def keep(self, x: Tensor, site: Site) -> Tensor:
            calls.append(site.name)
            return x.abs() > x.abs().mean(-1, keepdim=True)

    model, given, made = make("llama"), inputs("llama"), []
    with Counted().apply(model), observing(lambda one: made.append((one.site.name, one.made))):
        found = output(model, given)
        assert calls == [f"{layer}.{name}" for layer in range(LAYERS) for name in ("q", "o", "gate", "down")]
        assert [name for name, fresh in made if fresh] == calls
        assert len(made) == 7 * LAYERS
        calls.clear()
        with torch.inference_mode():
            close(output(model, given), found)
        assert len(calls) == 4 * LAYERS
        attention = model.model.layers[0].self_attn
        for inference in (False, True):
            with torch.inference_mode(inference):
                x = torch.randn(1, 2, 32)
                attention.q_proj(x)
                changed = attention.k_proj(x.neg_().add_(0.5))  # the same tensor, and another input
                close(changed, attention.k_proj(x.clone()))


def test_a_nan_reaches_the_output_of_its_token():
    layer = make("llama").model.layers[0]
    model = make("llama")
    x = torch.randn(1, 4, 32)
    x[0, 2, 5] = torch.nan
    for method in (NMActivations(1, 8), WINA(0.1), TEAL(0.5), CHESS(0.5)):
        with _applied(method, model), torch.no_grad():
            out = model.model.layers[0].mlp(x)
        assert out[0, 2].isnan().all()
        assert not out[0, [0, 1, 3]].isnan().any()
    assert layer.mlp(x)[0, 2].isnan().all()


def test_what_is_left_out_counts_as_nothing_also_where_it_is_infinite():
    model, x = make("llama"), torch.zeros(1, 1, 32)
    x[..., 8:10] = torch.inf  # two of one group, of which the first stays
    query = model.model.layers[0].self_attn.q_proj
    with NMActivations(1, 8).apply(model), torch.no_grad():
        assert torch.equal(query(x)[0, 0], torch.inf * query.weight[:, 8])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_take_the_choice_as_a_constant(kind):
    model, given = make(kind), inputs(kind)
    labels = given["input_ids"]
    grads = []
    for context in (
        masked(model, kind, _rule(model, kind, NMActivations(2, 4))), NMActivations(2, 4).apply(model),
    ):  # fmt: skip
        model.zero_grad()
        with context:
            model(**given, labels=labels).loss.backward()
        grads.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected, rtol=1e-3, atol=1e-4)


def test_the_model_is_as_before_after_an_error():
    model, given = make("llama"), inputs("llama")
    expected, strides = output(model, given), model.model.layers[0].mlp.up_proj.weight.stride()
    with pytest.raises(ZeroDivisionError), WINA(0.2).apply(model):
        _ = 1 / 0
    with pytest.raises(ValueError, match=r"there must be a threshold for 0\.q: there is none"), TEAL(0.5).apply(model):
        pass
    assert torch.equal(output(model, given), expected)
    assert model.model.layers[0].mlp.up_proj.weight.stride() == strides


@pytest.mark.parametrize("method", [WINA(0.2), CHESS(0.5)], ids=lambda one: one.name)
def test_a_forward_that_is_still_held_afterwards_is_the_modules_own(method):
    mlp, x = (model := make("llama")).model.layers[0].mlp, torch.randn(3, 32)
    with torch.no_grad():
        expected = mlp(x)
        with _applied(method, model):
            held, sparse = [module.forward for module in (mlp, mlp.up_proj, mlp.down_proj)], mlp(x)
        assert not torch.allclose(sparse, expected)
        close(held[0](x), expected)
        close(held[2](nn.functional.silu(mlp.gate_proj(x)) * held[1](x)), expected)


def test_methods_do_not_nest_on_one_layer_and_may_on_others():
    model, given = make("llama"), inputs("llama")
    dense = output(model, given)
    outer = Sparsity(mlp=WINA(0.3)).apply(model)
    outer.__enter__()
    with pytest.raises(ValueError, match="linear layers must have their class's own forward"), WINA(0.5).apply(model):
        pass
    inner = Sparsity(qkv=WINA(0.3)).apply(model)
    inner.__enter__()
    outer.__exit__(None, None, None)  # contexts may overlap
    with Sparsity(qkv=WINA(0.3)).apply(copy.deepcopy(make("llama"))):
        pass
    kept = output(model, given)
    inner.__exit__(None, None, None)
    assert not torch.allclose(kept, dense)
    assert torch.equal(output(model, given), dense)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_other_contexts_go_around_it():
    model, given = make("bert"), inputs("bert")
    dense = output(model, given)
    with NMActivations(2, 4).apply(model):
        with Magnitude(0.5).apply(model):
            both = output(model, given)
        alone = output(model, given)
        with SpAtten(0.5).apply(model) as trace:
            model(**given)
        assert int(trace.last.tokens[0, -1]) < given["input_ids"].shape[1]
    assert not torch.allclose(both, alone)
    with Magnitude(0.5).apply(model), NMActivations(2, 4).apply(model):
        close(output(model, given), both)
    assert torch.equal(output(model, given), dense)


def test_threads_share_a_model():
    model = make("llama")
    batches = [torch.randint(2, 50, (1, length)) for length in (3, 7, 5, 7)]
    with NMActivations(2, 4, norm=True).apply(model), torch.no_grad():
        expected = [model(ids).logits for ids in batches]
        found: list[Tensor | None] = [None] * len(batches)

        def run(number: int) -> None:
            with torch.no_grad():
                for _ in range(3):
                    found[number] = model(batches[number]).logits

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        close(one, other)


def test_a_choice_of_another_form_is_refused():
    class Wrong(ActivationSparsity):
        name = "wrong"  # pyright: ignore[reportAssignmentType]
        keeps_everything = False  # pyright: ignore[reportAssignmentType]

        @classmethod
        def from_name(cls, name):
            return None

        def keep(self, x: Tensor, site: Site) -> Tensor:
            return x[:, :1] > 0

    model = make("llama")
    with Wrong().apply(model), pytest.raises(ValueError, match=r"wrong: keep must return bool of shape \(14, 32\)"):
        output(model, inputs("llama"))


def test_thresholds_of_another_model_are_refused():
    with (
        pytest.raises(ValueError, match=r"thresholds of 0\.q must be 1 or 32: got 5"),
        Calibrated(TEAL(0.5), THRESHOLDS | {"0.q": (0.1,) * 5}).apply(make("llama")),
    ):
        pass
