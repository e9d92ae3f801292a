"""Bounds through attention hold what attention gives, and are its output where nothing moves."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import dynattn
from dynattn import NM, verify
from dynattn.methods import parse
from dynattn.nn import Attention
from dynattn.verify import Box
from tests.verify.sampling import hold, members

METHODS = ["dense", "nm-1-2", "nm-2-4", "nm-3-5-x2", "nm-1-4-w2-s1", "topk-3", "topk-0.5-f2", "window-3-s1"]


def boxes(radius: float, q_len: int = 5, kv_len: int = 9) -> list[Box]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, q_len, 6), (2, 2, kv_len, 6), (2, 2, kv_len, 3))
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [Box.around(draw(shape), radius * draw(shape).abs()) for shape in shapes]


def mask_of(kind: str) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(2, 1, 5, 9, generator=generator) > 0.3
    allowed[0, 0, 2] = False  # a row with nothing allowed
    bias = torch.randn(4, 5, 9, generator=generator, dtype=torch.float64)
    return {"none": None, "bool": allowed, "bias": bias.masked_fill(allowed[1], -torch.inf)}[kind]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mask", ["none", "bool", "bias"])
@pytest.mark.parametrize("radius", [0.0, 0.1, 1.0])
def test_it_holds_attention_and_its_kept_mass(method: str, mask: str, radius: float):
    given = boxes(radius)
    options = {"attn_mask": mask_of(mask), "causal": mask == "none", "scale": -0.3 if mask == "bias" else None}
    found = verify.attention(*given, parse(method), **options)
    for its in members(given, 8):
        out, aux = dynattn.attention(*its, parse(method), **options, return_aux=True)
        assert found.out.holds(out, 1e-12)
        assert (aux.kept_mass >= found.kept_mass - 1e-12).all()
        if radius == 0:
            torch.testing.assert_close(found.kept_mass, aux.kept_mass)
            assert found.out.radius.max() < 1e-12
            assert torch.equal(found.surely, found.possibly)


def test_the_choice_is_seen_to_be_settled_or_not():
    settled = [float(verify.attention(*boxes(radius), NM(1, 2)).settled.mean()) for radius in (0.0, 0.05, 0.5, 5.0)]
    assert settled[0] == 1
    assert settled == sorted(settled, reverse=True)
    assert settled[-1] < 0.3


def test_the_largest_mix_of_values_is_reached():
    """With scores that do not move, an output is linear in the values; with values that do not, weights share 1."""
    query, key, value = boxes(0.0)
    moved = Box.around(value.center, 0.5)
    found = verify.attention(query, key, moved, NM(1, 1)).out
    torch.testing.assert_close(found.radius, torch.full_like(found.radius, 0.5))
    wild = verify.attention(Box.around(query.center, 50.0), key, value, NM(1, 1)).out
    of_heads = value.center.repeat_interleave(2, 1)
    assert (wild.upper <= of_heads.amax(2, keepdim=True) + 1e-12).all()  # a mean is never beyond what it is of
    assert (wild.lower >= of_heads.amin(2, keepdim=True) - 1e-12).all()


def test_boxes_go_through_dynattns_attention_and_pytorchs():
    query, key, value = boxes(0.1)
    expected = verify.attention(query, key, value, NM(1, 2), causal=True).out
    for given in ((query, key, value), (query.center, key, value.center)):
        hold(lambda *x: dynattn.attention(*x, NM(1, 2), causal=True), [Box.of(x) for x in given], count=4)
    through = dynattn.attention(query, key, value, NM(1, 2), causal=True)
    assert torch.equal(through.upper, expected.upper)
    square = boxes(0.1, 7, 7)
    full = [square[0], *(x.repeat_interleave(2, 1) for x in square[1:])]
    hold(lambda *x: F.scaled_dot_product_attention(*x, is_causal=True), full, count=4)


@pytest.mark.parametrize("form", ["headwise", "elementwise"])
def test_boxes_go_through_an_output_gate(form):
    torch.manual_seed(0)
    module = Attention(6, 2, method=NM(1, 2), gate=form, dtype=torch.float64)
    with torch.no_grad():
        hold(module, [Box.around(torch.randn(1, 5, 6, dtype=torch.float64), 0.05)], count=20)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"return_aux": True}, NotImplementedError, "attention of boxes takes no return_aux"),
        ({"dropout_p": 0.1}, NotImplementedError, "attention of boxes takes no dropout_p"),
        ({"backend": "reference"}, NotImplementedError, "attention of boxes takes no backend"),
        ({"method": parse("threshold-0.1")}, NotImplementedError, "method must be NM, TopK or Window"),
    ],
)
def test_what_boxes_do_not_take(options, error, words):
    with pytest.raises(error, match=words):
        dynattn.attention(*boxes(0.1), **options)


def test_shapes_that_do_not_fit_are_attentions_own_error():
    query, key, value = boxes(0.1)
    with pytest.raises(ValueError, match=r"attention: .*head"):
        verify.attention(query, key[..., :4], value)
