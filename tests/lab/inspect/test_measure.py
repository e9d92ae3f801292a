"""What is measured: against theory, against the attention call itself, and by hand."""

import math
import re

import pytest
import torch

import dynattn
from dynattn import NM, theory
from dynattn.integrations.transformers import Call
from dynattn.lab.inspect.measure import choice, maps, measure, scores

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from dynattn.lab import inspect as inspecting  # noqa: E402
from dynattn.lab.inspect.sections import page  # noqa: E402
from dynattn.lab.inspect.subject import from_text  # noqa: E402
from tests.lab.inspect.tiny import tiny  # noqa: E402


def gaussian_call(sigma, length=256, heads=2, kv_heads=1, causal=False, attn_mask=None, seed=0):
    """A call whose scores are nearly independent draws of N(0, σ²): random keys of many dimensions, scaled."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, h, length, 128, generator=generator) for h in (heads, kv_heads, kv_heads))
    return Call(3, torch.nn.Identity(), query, key, value, NM(1, 1), attn_mask, causal, sigma / 128**0.5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", [NM(2, 4), NM(1, 2, window=16, sinks=2), NM(3, 8)])
def test_gaussian_scores_meet_the_theory(method, causal):
    heads, within = measure(gaussian_call(1.5, causal=causal), method)
    assert within
    for head in heads:
        assert head.sigma == pytest.approx(1.5, rel=0.06)
        assert head.kept_mass == pytest.approx(head.predicted, abs=0.015)
        assert head.shuffled == pytest.approx(head.predicted, abs=0.015)
        assert causal or head.random == pytest.approx(head.density, abs=0.015)
        assert head.top_k > head.kept_mass > head.random
        assert method.n / method.m <= head.worst_row < head.kept_mass


def test_figures_are_those_of_the_attention_call():
    mask = torch.ones(1, 1, 1, 96, dtype=torch.bool)
    mask[..., :7] = False  # padded on the left
    call = gaussian_call(1.0, length=96, heads=4, kv_heads=2, attn_mask=mask)
    out, aux = dynattn.attention(
        call.query, call.key, call.value, NM(2, 4), attn_mask=mask, scale=call.scale, return_aux=True
    )
    heads, _ = measure(call, NM(2, 4))
    for head in heads:
        found = maps(call, NM(2, 4), head.head)
        assert head.layer == 3
        assert head.kept_mass == pytest.approx(float(aux.kept_mass[0, head.head].mean()), abs=1e-5)
        assert head.kept_mass == pytest.approx(float((found.dense * found.kept).sum(-1).mean()), abs=1e-5)
        assert head.density == pytest.approx(float(found.kept.sum()) / (96 * 89), abs=1e-6)
        assert torch.allclose(found.sparse @ call.value[0, head.head // 2], out[0, head.head], atol=1e-5)
        assert float(head.keys.received.sum()) == pytest.approx(96, rel=1e-5)
        assert float(head.keys.lost.sum()) == pytest.approx(96 * (1 - head.kept_mass), rel=1e-4)
        assert head.keys.kept_by[:7].tolist() == [0.0] * 7
        assert head.random == pytest.approx(head.density, abs=0.05)


def test_neighbours_that_compete_lose_and_shuffling_shows_it():
    """Keys in pairs of equals: 1:2 keeps exactly half of them, in another order more."""
    call = gaussian_call(2.0)
    key = call.key[:, :, ::2].repeat_interleave(2, dim=2)
    heads, _ = measure(call._replace(key=key), NM(1, 2))
    for head in heads:
        assert head.kept_mass == pytest.approx(0.5, abs=1e-4)
        assert head.shuffled == pytest.approx(head.predicted, abs=0.03)
        assert head.predicted > 0.85


def test_scores_of_a_masked_causal_call():
    mask = torch.zeros(1, 2, 5, 9)
    mask[0, 1, 2, 3] = -math.inf
    query, key, value = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 9, 4), torch.randn(1, 2, 9, 4)
    call = Call(0, torch.nn.Identity(), query, key, value, NM(1, 1), mask, True, None)
    s = scores(call, 1)
    assert s.shape == (5, 9)
    assert (s == -math.inf).nonzero().tolist() == [
        [0, 5], [0, 6], [0, 7], [0, 8], [1, 6], [1, 7], [1, 8], [2, 3], [2, 7], [2, 8], [3, 8],
    ]  # fmt: skip
    assert torch.allclose(s[4], call.query[0, 1, 4] @ call.key[0, 1].T / 2)
    assert choice(s, NM(1, 2)).sum(-1).tolist() == [3, 3, 4, 4, 5]


def assert_self_contained(html):
    assert html.startswith("<!doctype html>")
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
    assert "<b>bold" not in html


def test_dense_keeps_all():
    pretrained = tiny("encoder")
    found = inspecting.inspect(pretrained, from_text(pretrained, "one two three four five", "Text", 9), NM(4, 4))
    assert found.mean("kept_mass") == pytest.approx(1, abs=1e-6)
    assert found.output_error == pytest.approx(0, abs=1e-5)
    assert_self_contained(page(found))


def test_expected_mass_averages_over_causal_rows():
    heads, _ = measure(gaussian_call(1.0, length=24, causal=True), NM(1, 4))
    expected = theory.kept_mass(NM(1, 4), heads[0].sigma, torch.arange(1, 25)).mean()
    assert heads[0].predicted == pytest.approx(float(expected), abs=1e-9)
