"""What a model loses while it runs: exact for the rows drawn, unbiased over them, and stopped below a limit."""

from __future__ import annotations

import itertools
import math
import threading
import warnings

import pytest
import torch

import dynattn

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import Loss, assign, audit, calls, observing, register  # noqa: E402
from dynattn.integrations.transformers.calls import Call  # noqa: E402
from tests.integrations.transformers.tiny import text, tiny, with_attention  # noqa: E402

METHODS = (
    "topk-3", "mass-0.7", "threshold-0.05", "nm-1-2", "nm-1-3-w2-s1", "nm-2-4-x3", "random-0.5-f2",
    "window-3-s1", "blocktopk-0.5-b4-f0", "blockmass-0.5-b8", "dsa-0.5-v4", "topk-2&nm-1-3", "topk-2+window-2",
    "perhead(2*topk-2_window-3_nm-1-2)", "perlayer(nm-1-2_1=topk-2)",
)  # fmt: skip

register(*METHODS)


def masses_of(call: Call) -> torch.Tensor:
    """Kept mass of the rows that may attend to something, by the call's own certificate."""
    _, aux = dynattn.attention(
        call.query, call.key, call.value, call.method, attn_mask=call.attn_mask, causal=call.causal, scale=call.scale,
        return_aux=True,
    )  # fmt: skip
    ones = call.query.new_ones(())
    seen = dynattn.attention(
        call.query, call.key, ones.expand(*call.key.shape[:3], 1), dynattn.NM(1, 1), attn_mask=call.attn_mask,
        causal=call.causal, scale=call.scale,
    )  # fmt: skip
    return aux.kept_mass[seen[..., 0] > 0.5]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
@torch.no_grad()
def test_of_all_rows_the_mean_is_that_of_the_certificate(name: str, kind: str):
    model = with_attention(tiny(kind), f"dynattn:{name}")
    masses: dict[str, list[torch.Tensor]] = {}
    names = {module: name for name, module in model.named_modules()}

    def note(call: Call) -> None:
        masses.setdefault(names[call.module], []).append(masses_of(call))

    with observing(note), audit(model, 1.0) as found:
        out = model(**text())[0]
        model(**text(padding="right"))
    assert list(found.kept_mass) == [part for part in names.values() if part in masses]
    for part, mean in found.kept_mass.items():
        assert mean == pytest.approx(torch.cat(masses[part]).double().mean().item(), abs=1e-6)
        assert found.rows[part] == sum(mass.numel() for mass in masses[part])
    assert found.dense == ()
    assert torch.equal(model(**text())[0], out)  # nothing is left behind


@torch.no_grad()
def test_decoding_with_a_cache_and_cross_attention_are_seen():
    model = with_attention(tiny("t5"), "dynattn:topk-2")
    with audit(model, 1.0) as found:
        model.generate(**text(), max_new_tokens=4, do_sample=False)
    assert len(found.kept_mass) == 2 + 2 * 2
    assert all(0 < mean < 1 for mean in found.kept_mass.values())


@pytest.mark.parametrize("name", ["topk-2", "window-2", "blocktopk-0.5-b4-w0-s0-f0"])
@torch.no_grad()
def test_the_mean_of_few_rows_is_unbiased(name: str):
    model = with_attention(tiny("llama"), f"dynattn:{name}")
    inputs = {"input_ids": torch.randint(3, 97, (1, 48), generator=torch.Generator().manual_seed(0))}

    def means(share: float, seed: int, calls: int) -> tuple[list[float], int]:
        with audit(model, share, seed=seed) as found:
            for _ in range(calls):
                model(**inputs)
        return list(found.kept_mass.values()), sum(found.rows.values())

    exact, every = means(1.0, 0, 1)
    drawn, rows = means(0.4, 1, 200)
    assert 0.36 * every * 200 < rows < 0.44 * every * 200
    assert drawn == pytest.approx(exact, abs=0.02)
    assert means(0.4, 1, 5) == means(0.4, 1, 5)
    assert means(0.4, 1, 5) != means(0.4, 2, 5)


@torch.no_grad()
def test_a_layer_below_the_limit_attends_densely_and_that_is_said_once():
    model = with_attention(tiny("llama"), "dynattn:perlayer(mass-0.9_1=topk-1)")
    dense_second = with_attention(tiny("llama"), "dynattn:perlayer(mass-0.9_1=dense)")
    first = model(**text())[0]
    with audit(model, 1.0, limit=0.85) as found:
        with pytest.warns(UserWarning, match=r"audit: model\.layers\.1\.self_attn keeps 0\.\d+ of .* limit of 0.85"):
            assert torch.equal(model(**text())[0], first)
        assert found.dense == ("model.layers.1.self_attn",)
        rows = found.rows["model.layers.1.self_attn"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(model(**text())[0], dense_second(**text())[0])
        assert found.rows["model.layers.1.self_attn"] == rows  # what keeps everything is not counted
    assert torch.equal(model(**text())[0], first)


@torch.no_grad()
def test_a_function_is_told_in_place_of_the_warning_and_may_leave_the_layer_as_it_is():
    model = with_attention(tiny("llama"), "dynattn:topk-1")
    first, told = model(**text())[0], []

    def keep_first(loss: Loss) -> bool:
        told.append(loss)
        return "layers.0" not in loss.layer

    with audit(model, 1.0, limit=1.0, on_loss=keep_first) as found, warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            model(**text())
    assert [loss.layer for loss in told] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert all(0 < loss.kept_mass < 1 and loss.rows > 0 for loss in told)
    assert found.dense == ("model.layers.1.self_attn",)
    assert torch.equal(model(**text())[0], first)


@torch.no_grad()
def test_nan_is_below_every_limit():
    model = with_attention(tiny("llama"), "dynattn:topk-2")
    model.model.layers[0].self_attn.q_proj.weight.data.fill_(math.nan)
    with audit(model, 1.0, limit=0.1, on_loss=lambda loss: None) as found:
        model(**text())
    assert "model.layers.0.self_attn" in found.dense


@torch.no_grad()
def test_methods_that_the_modules_hold_are_seen_by_their_names():
    model = tiny("llama")
    assign(model, {"model.layers.1.self_attn": "topk-2"})
    with audit(model, 1.0, limit=0.999, on_loss=lambda loss: None) as found:
        model(**text())
        sparse = model(**text())[0]
    assert list(found.kept_mass) == ["model.layers.1.self_attn"] == list(found.dense)
    torch.testing.assert_close(sparse, with_attention(model, "dynattn:dense")(**text())[0])


@torch.no_grad()
def test_other_models_are_not_seen_and_audits_nest():
    model, other = (with_attention(tiny("llama"), "dynattn:topk-2") for _ in range(2))
    with audit(model, 1.0) as outer, audit(model, 1.0) as inner:
        other(**text())
        assert outer.kept_mass == {}
        model(**text())
    assert outer.kept_mass == inner.kept_mass != {}


def test_several_threads():
    model = with_attention(tiny("llama"), "dynattn:topk-2")
    with torch.no_grad(), audit(model, 1.0) as one:
        model(**text())

    def run() -> None:
        with torch.no_grad():
            for _ in range(3):
                model(**text())

    with audit(model, 1.0) as found:
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found.rows == {name: 12 * rows for name, rows in one.rows.items()}
    assert found.kept_mass == pytest.approx(one.kept_mass)


@torch.no_grad()
def test_a_compiled_model_is_seen_too():
    torch.compiler.reset()
    model = with_attention(tiny("llama"), "dynattn:topk-2")
    with audit(model, 1.0) as eager:
        model(**text())
    compiled = torch.compile(model, backend="eager")
    out = compiled(**text())[0]
    with audit(model, 1.0) as found:
        torch.testing.assert_close(compiled(**text())[0], out)
    assert found.rows == eager.rows
    assert found.kept_mass == pytest.approx(eager.kept_mass)
    torch.testing.assert_close(compiled(**text())[0], out)
    assert found.rows == eager.rows


def test_gradients_are_the_same():
    model = with_attention(tiny("bert"), "dynattn:topk-2")
    gradients = []
    for share in (None, 1.0):
        model.zero_grad()
        if share is None:
            model(**text())[0].square().sum().backward()
        else:
            with audit(model, share):
                model(**text())[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in itertools.zip_longest(*gradients):
        assert torch.equal(a, b)


def test_it_is_undone_after_an_error():
    model = with_attention(tiny("llama"), "dynattn:topk-2")
    before = len(calls.observers), len(calls.replacements)
    with pytest.raises(KeyError, match="mine"), audit(model):
        raise KeyError("mine")
    assert (len(calls.observers), len(calls.replacements)) == before


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"share": 0}, ValueError, "share must be above 0 and at most 1: got 0;"),
        ({"share": 1.5}, ValueError, "share must be above 0 and at most 1: got 1.5"),
        ({"share": math.nan}, ValueError, "share must be above 0"),
        ({"share": True}, TypeError, "share must be a number: got True"),
        ({"share": "0.01"}, TypeError, "share must be a number: got '0.01'"),
        ({"seed": 0.5}, TypeError, "seed must be an int: got 0.5"),
        ({"seed": -1}, ValueError, "seed must be at least 0 and below"),
        ({"limit": "0.9"}, TypeError, "limit must be a number: got '0.9'"),
        ({"limit": 0.0}, ValueError, "limit must be above 0 and at most 1: got 0.0"),
        ({"limit": 2}, ValueError, "limit must be above 0 and at most 1: got 2"),
        ({"on_loss": print}, ValueError, "on_loss needs a limit"),
        ({"limit": 0.9, "on_loss": "print"}, TypeError, "on_loss must be a function: got 'print'"),
    ],
)
def test_refusals(arguments: dict, error: type[Exception], said: str):
    model = with_attention(tiny("llama"), "dynattn:topk-2")
    with pytest.raises(error, match=f"audit: {said}"), audit(model, **arguments):
        pass


def test_a_model_that_does_not_attend_by_dynattn_is_refused():
    said = "audit: the model must attend by dynattn: LlamaForCausalLM does not"
    with pytest.raises(ValueError, match=said), audit(tiny("llama")):
        pass
    with pytest.raises(TypeError, match="audit: model must be a module: got str"), audit("model"):  # type: ignore[arg-type]
        pass


@torch.no_grad()
def test_a_method_that_keeps_no_pairs_is_refused():
    register("efficient")
    model = with_attention(tiny("bert"), "dynattn:efficient")
    with audit(model), pytest.raises(ValueError, match=r"a method must keep pairs to have a kept mass: got efficient"):
        model(**text())
