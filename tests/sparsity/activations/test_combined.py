"""Methods by part and layer."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from dynattn.sparsity import CHESS, TEAL, WINA, NMActivations, Sparsity, parse
from tests.pruning.structure.models import close, inputs, make, output

NM = NMActivations(2, 4, norm=True)


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (Sparsity(mlp=NM), "sites(mlp=nmact-2-4-norm)"),
        (
            Sparsity(mlp=CHESS(0.5), qkv=TEAL(0.25), out=WINA(0.7), layers=range(1, 29), skip=("down", "5.o")),
            "sites(qkv=teal-0.25_out=wina-0.7_mlp=chess-0.5_layers=1-28_skip=down+5.o)",
        ),
        (Sparsity(out=NM, layers=range(3, 4)), "sites(out=nmact-2-4-norm_layers=3)"),
    ],
)
def test_names_come_back(plan, name):
    assert plan.name == name
    assert parse(name) == plan


def test_places_have_the_method_of_their_part():
    plan = Sparsity(mlp=NM, out=WINA(0.5), layers=range(1, 4), skip=("up", "2.o"))
    names = ("q", "qkv", "o", "gate", "up", "down", "in", "out")
    of_layer = {layer: [plan.at(layer, name) for name in names] for layer in (0, 1, 2)}
    assert of_layer[0] == [None] * 8
    assert of_layer[1] == [None, None, WINA(0.5), NM, None, NM, NM, NM]
    assert of_layer[2] == [None, None, None, NM, None, NM, NM, NM]
    assert Sparsity(mlp=CHESS(0.5)).at(0, "gate") is None
    assert Sparsity(mlp=CHESS(0.5)).at(0, "down") == CHESS(0.5)


def test_a_combination_is_its_parts_one_inside_the_other():
    model, given = make("llama"), inputs("llama")
    with Sparsity(mlp=NM, qkv=WINA(0.5), layers=range(1, 3)).apply(model) as sites:
        found = output(model, given)
    assert {site.name for site in sites} == {
        f"{layer}.{name}" for layer in (1, 2) for name in ("q", "k", "v", "gate", "up", "down")
    }
    with (
        Sparsity(mlp=NM, layers=range(1, 3)).apply(model),
        Sparsity(qkv=WINA(0.5), layers=range(1, 2)).apply(model),
        Sparsity(qkv=WINA(0.5), layers=range(2, 3)).apply(model),
    ):
        close(output(model, given), found)
    assert not output(model, given).equal(found)


@pytest.mark.parametrize(
    ("fields", "error", "reason"),
    [
        ({}, ValueError, "one of mlp, qkv and out must be given"),
        ({"mlp": "wina-0.5"}, TypeError, "mlp must be a method that chooses inputs"),
        ({"qkv": CHESS(0.5)}, ValueError, "qkv must hold what the method chooses: chess-0.5 has no place there"),
        ({"mlp": NM, "layers": (1, 2)}, TypeError, "layers must be a range"),
        ({"mlp": NM, "layers": range(2, 2)}, ValueError, "layers must go up in steps of 1"),
        ({"mlp": NM, "layers": range(0, 4, 2)}, ValueError, "layers must go up in steps of 1"),
        ({"mlp": NM, "skip": "down"}, TypeError, "skip must be a tuple of names"),
        ({"mlp": NM, "skip": ("downs",)}, ValueError, "skip must name projections, as 'down' or '5.down': got 'downs'"),
    ],
)
def test_refusals(fields, error, reason):
    with pytest.raises(error, match=f"Sparsity: {reason}"):
        Sparsity(**fields)


@pytest.mark.parametrize(
    "name",
    ["sites()", "sites(mlp=wina)", "sites(mlp=wina-0.5_mlp=wina-0.5)", "sites(x=wina-0.5)", "sites(mlp=magnitude-0.5)",
     "sites(mlp=wina-0.5_layers=a)", "sites(mlp=sites(mlp=wina-0.5))"],
)  # fmt: skip
def test_wrong_names_are_refused(name):
    with pytest.raises((ValueError, TypeError), match="Sparsity: "):
        parse(name)


def test_nothing_to_do_is_refused():
    model = make("llama")
    with (
        pytest.raises(ValueError, match="a method must be set for some linear layer"),
        Sparsity(out=NM, skip=("o",)).apply(model),
    ):
        pass
