"""Recipes by name; they are no methods, and methods are no recipes."""

from __future__ import annotations

import pytest

from dynattn import sparsity
from dynattn.sparsity.training import BDWP, SRSTE, Progressive, find, parse, register

RECIPES = (SRSTE(2, 4), SRSTE(1, 4, 0.1, True), Progressive(1, 8), Progressive(1, 8, "geometric"), BDWP(2, 8))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_names_come_back_and_are_no_others(recipe):
    assert parse(recipe.name) == recipe
    assert sparsity.find(recipe.name) is None
    assert recipe.kept == sparsity.NMWeights(recipe.n, recipe.m)


def test_unknown_names_are_refused():
    assert find("nmweight-2-4") is None
    with pytest.raises(ValueError, match=r"training.parse: name must be a short name of a recipe: got 'nm-2-4'"):
        parse("nm-2-4")
    with pytest.raises(TypeError, match="must be a subclass"):
        register(int)  # pyright: ignore[reportArgumentType]
