"""Every method's name stands for that method, whatever it is made of."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dynattn
from dynattn import (
    DSA,
    NM,
    BlockBound,
    BlockMass,
    BlockSkip,
    BlockTopK,
    Fixed,
    FlexPrefill,
    Intersection,
    Mass,
    PerHead,
    PerLayer,
    Quest,
    Random,
    Threshold,
    TopK,
    Union,
    VerticalSlash,
    Window,
)  # fmt: skip
from dynattn.methods import PairMethod, Rows, parse, register, registry
from dynattn.methods.blocks import ESTIMATES
from tests.methods import every

counts = st.integers(1, 2**31 - 1)
shares = st.floats(1e-6, 1.0)
floors = st.one_of(st.just(32), st.integers(0, 2**31 - 1))
windows = st.one_of(st.none(), st.integers(0, 2**31 - 1))
estimates = st.sampled_from(sorted(ESTIMATES))

whole_blocks = st.one_of(
    st.builds(BlockTopK, shares, st.integers(1, 64).map(lambda x: 16 * x), estimates, windows, floors, floors),
    st.builds(BlockMass, shares, st.integers(1, 64).map(lambda x: 16 * x), estimates, windows, floors),
)
pairs = st.one_of(
    st.builds(NM, st.just(1), st.integers(1, 32), window=st.integers(0, 99), sinks=st.integers(0, 9)),
    st.builds(lambda k: TopK(k=k), counts),
    st.builds(lambda ratio, floor: TopK(ratio=ratio, floor=floor), shares, floors),
    st.builds(Threshold, st.floats(0.0, 1.0, exclude_max=True).map(abs)),
    st.builds(Mass, shares),
    whole_blocks,
    st.builds(BlockTopK, shares, st.integers(1, 1024)),
    st.builds(BlockSkip, st.floats(0.0, 1000.0).map(abs), st.one_of(st.none(), whole_blocks)),
    st.builds(BlockBound, shares, st.integers(1, 1024), st.one_of(st.none(), counts), floors),
    st.builds(FlexPrefill, shares, st.integers(1, 1024), floors, counts),
    st.builds(VerticalSlash, floors, st.integers(0, 99), st.integers(1, 1024), counts),
    st.builds(lambda pages, page: Quest(pages * page, page), st.integers(1, 9999), st.integers(1, 1024)),
    st.builds(Window, counts, st.integers(0, 2**31 - 1)),
    st.builds(Random, shares, st.integers(0, 2**63 - 1), floors),
    st.builds(Fixed, shares),
    st.builds(DSA, shares, shares, st.sampled_from((4, 8)), st.sampled_from((1, 4, 8, 16)), st.integers(0, 99)),
)
combined = st.recursive(
    pairs,
    lambda parts: st.builds(
        lambda kind, some: kind(tuple(some)),
        st.sampled_from((Union, Intersection)),
        st.lists(parts, min_size=2, max_size=3),
    ),
    max_leaves=5,
)
by_head = st.builds(lambda parts: PerHead(tuple(parts)), st.lists(combined, min_size=1, max_size=4))
of_a_layer = st.one_of(combined, by_head)


@st.composite
def by_layer(draw: st.DrawFn) -> PerLayer:
    edges = sorted(draw(st.sets(st.integers(0, 40), max_size=6)))
    ranges = [range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    return PerLayer({where: draw(of_a_layer) for where in ranges}, draw(of_a_layer))


@given(st.one_of(of_a_layer, by_layer()))
@settings(max_examples=300, deadline=None)
def test_names_round_trip(method) -> None:
    if isinstance(method, NM) and method.keeps_everything:
        return  # every N:N is dense attention, and called so
    assert parse(method.name) == method
    assert "," not in method.name
    assert "/" not in method.name  # Transformers would look for such a name on a hub
    assert not set(method.name) & set(" |:")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("topk-64", TopK(k=64)),
        ("topk-1", TopK(k=1)),
        ("topk-1.0", TopK(ratio=1.0)),
        ("topk-0.25", TopK(ratio=0.25, floor=32)),
        ("topk-0.25-f0", TopK(ratio=0.25, floor=0)),
        ("random-0.5-f8-seed3", Random(0.5, 3, 8)),
        ("threshold-0.01", Threshold(0.01)),
        ("mass-0.95", Mass(0.95)),
        ("mass-1.0", Mass(1.0)),
        ("mass-0.000001", Mass(1e-6)),
        ("blocktopk-0.25-b16", BlockTopK(0.25, 16)),
        ("window-64-s4", Window(64, 4)),
        ("window-64", Window(64)),
        ("random-0.5", Random(0.5)),
        ("random-0.5-seed3", Random(0.5, 3)),
        ("fixed-0.5", Fixed(0.5)),
        ("nm-1-2+window-8", Union((NM(1, 2), Window(8)))),
        ("nm-1-2&window-8", Intersection((NM(1, 2), Window(8)))),
        ("topk-3+nm-1-2&window-8", Union((TopK(k=3), Intersection((NM(1, 2), Window(8)))))),
        ("(topk-3+nm-1-2)&window-8", Intersection((Union((TopK(k=3), NM(1, 2))), Window(8)))),
        ("perhead(2*dense_topk-3+window-8)", PerHead((NM(1, 1), NM(4, 4), Union((TopK(k=3), Window(8)))))),
        ("perlayer(nm-1-2_0-2=dense)", PerLayer({range(3): NM(1, 1)}, NM(1, 2))),
        ("perlayer(dense_5=perhead(nm-1-2_dense))", PerLayer({range(5, 6): PerHead((NM(1, 2), NM(1, 1)))}, NM(1, 1))),
    ],
)
def test_names(name: str, method) -> None:
    assert method.name == name
    assert parse(name) == method


@pytest.mark.parametrize(
    "name",
    [
        "topk-", "topk-0", "topk-1.5", "topk-.5", "topk--1", "topk-1e-3", "topk-64-f0", "topk-0.5-f",
        "blocktopk-0.5-b24-antidiagonal",
        "blocktopk-0.5-b16-best", "blocktopk-0.5-b16-s4-w4", "blockmass-0.5-b16-f32", "blockmass-1.5-b16",
        "blockbound-1-b16", "blockbound-0.9-b16-sampled", "blockbound-0.9-b16-w0",
        "threshold-1.0", "threshold-1", "fixed-2.0", "mass-", "mass-1", "mass-0.0", "mass-1.5", "mass-0.9-f32",
        "blocktopk-0.25", "blocktopk-0.25-b0", "window-0", "window-4-s", "random-0.5-seed", "random-0", "nm-1-2+",
        "+nm-1-2", "nm-1-2++nm-2-4", "(nm-1-2", "nm-1-2)", "(nm-1-2)", "nm-1-2&", "()", "perhead()", "perhead(a_b)",
        "perhead(0*dense)", "perhead(perhead(dense))", "perhead(dense", "perlayer()", "perlayer(dense_1)",
        "perlayer(dense_2-1=nm-1-2)", "perlayer(dense_0-3=nm-1-2_3=nm-2-4)", "perlayer(dense_0=perlayer(dense))",
        "nm-1-2+perhead(dense)", "perhead(dense)+nm-1-2", "perlayer(dense)&nm-1-2",
    ],
)  # fmt: skip
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must|give"):
        parse(name)


def test_an_unknown_name_is_told_how_names_are_written() -> None:
    with pytest.raises(ValueError, match=r"got 'random-0'.*shares have a point"):
        parse("random-0")
    with pytest.raises(ValueError, match=r"got 'spatten-0\.5'.*goes around a model: dynattn\.pruning"):
        parse("spatten-0.5")


def test_registering_a_class_again_replaces_it() -> None:
    def define(keeps: bool) -> type[PairMethod]:
        @register
        @dataclass(frozen=True)
        class Again(PairMethod):
            @property
            def name(self) -> str:
                return "again"

            @classmethod
            def from_name(cls, name: str) -> Again | None:
                return cls() if name == "again" else None

            def choose(self, scores: Tensor, rows: Rows) -> Tensor:
                return torch.full_like(scores, keeps, dtype=torch.bool)

        return Again

    query, key, value = torch.randn(3, 1, 1, 4, 8)
    for keeps in (False, True):
        again = define(keeps)()
        assert parse("again") == again
        assert (dynattn.attention(query, key, value, again) != 0).any() == keeps


def test_tests_of_every_method_miss_none() -> None:
    ours = {cls for cls in registry._known.known if cls.__module__.startswith("dynattn.methods.")}
    assert ours == {type(parse(name)) for name in (*every.NAMES, *every.LAYERED)}
