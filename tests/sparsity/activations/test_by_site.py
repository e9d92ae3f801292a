"""A method for each linear layer by itself."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from dynattn.sparsity import CHESS, TEAL, WINA, BySite, NMActivations, Sparsity, parse
from tests.pruning.structure.models import close, inputs, make, output

NM = NMActivations(2, 4, norm=True)


def test_names_come_back_whatever_the_order_was():
    plan = BySite((("10.up", NM), ("0.down", WINA(0.5)), ("2.gate", NM), ("2.up", NM)))
    assert plan.name == "bysite(nmact-2-4-norm=2.gate+2.up+10.up_wina-0.5=0.down)"
    assert parse(plan.name) == plan
    assert plan.at(2, "gate") == NM
    assert plan.at(0, "down") == WINA(0.5)
    assert plan.at(0, "gate") is None
    assert not plan.needs_thresholds
    assert BySite((("0.q", TEAL(0.5)),)).needs_thresholds


def test_sites_work_as_the_same_methods_by_part_and_layer():
    model, given = make("llama"), inputs("llama")
    with Sparsity(mlp=NM, qkv=WINA(0.5), layers=range(1, 2), skip=("down", "k")).apply(model):
        expected = output(model, given)
    plan = BySite((("1.q", WINA(0.5)), ("1.v", WINA(0.5)), ("1.gate", NM), ("1.up", NM)))
    with plan.apply(model) as sites:
        close(output(model, given), expected)
    assert {site.name for site in sites} == {"1.q", "1.v", "1.gate", "1.up"}


@pytest.mark.parametrize(
    ("methods", "error", "reason"),
    [
        ((), ValueError, "a tuple of pairs, one at least"),
        ([("0.q", NM)], ValueError, "a tuple of pairs, one at least"),
        ((("0.head", NM),), ValueError, "a layer and a projection, as in '3.down': got '0.head'"),
        (((3, NM),), ValueError, "a layer and a projection"),
        ((("0.q", "wina-0.5"),), TypeError, "0.q must have a method that chooses inputs: got 'wina-0.5'"),
        ((("0.q", CHESS(0.5)),), ValueError, "0.q must be where its method chooses: chess-0.5 has no place there"),
        ((("0.q", NM), ("0.q", WINA(0.5))), ValueError, "each site must come once: 0.q comes twice"),
    ],
)
def test_what_makes_no_sense_is_refused(methods, error, reason):
    with pytest.raises(error, match=f"BySite: .*{reason}"):
        BySite(methods)


@pytest.mark.parametrize("name", ["bysite()", "bysite(0.q)", "bysite(magnitude-0.5=0.q)", "bysite(wina-0.5=0.q+)"])
def test_names_of_nothing_are_refused(name):
    with pytest.raises(ValueError, match="BySite: a "):
        parse(name)
