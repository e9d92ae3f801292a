"""From seconds and harm to assignments: what splitting a call costs, and what is worth to be chosen from."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("transformers")
pytest.importorskip("markupsafe")

from dynattn.lab.figures import BASELINE
from dynattn.lab.tune import assignment
from dynattn.lab.tune.candidates import DENSE, candidates
from dynattn.lab.tune.choices import Choices, worth
from dynattn.lab.tune.times import Costs
from dynattn.methods import parse

FAST, FASTER = "nm-1-2", "window-8-s4"
SECONDS = {BASELINE: 1.0, DENSE: 1.0, FAST: 0.8, FASTER: 0.4}
HARM = {
    "a": {FAST: [0.0, 0.1, 0.1, 0.1], FASTER: [0.1, 0.5, 0.5, 0.5]},
    "b": {FAST: [0.1, 0.1, 0.1, 0.1], FASTER: [9.0, 9.0, 9.0, 9.0]},
}


def _choices(split: float = 0.0) -> Choices:
    return Choices(Costs({"a": 0, "b": 0}, [SECONDS], [split], [4]), HARM, (FAST, FASTER))


def test_the_path_begins_dense_and_ends_with_the_fastest():
    choices = _choices()
    assert choices.point(0).assignment == {"a": (DENSE,) * 4, "b": (DENSE,) * 4}
    assert choices.point(0).saved == 0
    assert choices.most.assignment == {"a": (FASTER,) * 4, "b": (FASTER,) * 4}
    assert choices.most.saved == pytest.approx(1.2)
    assert choices.most.harm == pytest.approx(1.6 + 36)


def test_a_budget_of_harm_is_kept():
    choices = _choices()
    for budget in (0.0, 0.1, 0.35, 0.6, 2.0, 10.0, 40.0):
        point = choices.within(budget)
        assert point.harm <= budget + 1e-9
        assert point.harm == pytest.approx(
            sum(
                HARM[m][name][h]
                for m, names in point.assignment.items()
                for h, name in enumerate(names)
                if name in HARM[m]
            )
        )
    assert choices.within(0.0).assignment["a"][0] == FAST  # without harm, so at once


def test_a_call_is_not_split_for_less_than_that_costs():
    free, dear = _choices(), _choices(split=0.3)
    assert set(free.within(0.0).assignment["a"]) == {FAST, DENSE}
    assert set(dear.within(0.0).assignment["a"]) == {DENSE}
    assert dear.within(0.0).saved == 0
    mixed = dear.priced(-1, {"a": (FASTER, FASTER, DENSE, DENSE), "b": (DENSE,) * 4})
    assert mixed.saved == pytest.approx(2 * 0.6 / 4 - 0.3)


def test_no_point_of_a_path_harms_for_nothing_where_splitting_a_call_is_dear():
    """Heads of unlike harm would be moved one by one over all modules, and none of the calls be faster."""
    harm = {m: {FAST: [0.1, 0.3, 0.1, 0.3], FASTER: [9.0] * 4} for m in "abc"}
    choices = Choices(Costs(dict.fromkeys("abc", 0), [SECONDS], [0.15], [4]), harm, (FAST, FASTER))
    for path in (choices.path, choices.through(FAST)):
        points = [choices.point(moves, path) for moves in range(len(path.moves) + 1)]
        assert len(points) > 3
        assert all(after.saved > before.saved for before, after in pairwise(points))
    assert choices.point(1).assignment == {"a": (FAST,) * 4, "b": (DENSE,) * 4, "c": (DENSE,) * 4}


def test_dense_attention_that_is_faster_than_pytorchs_saves_time_by_itself():
    costs = Costs(
        {"a": 0, "b": 1}, [{**SECONDS, BASELINE: 1.5}, {DENSE: 1.0, FAST: 0.8, FASTER: 0.4}], [0.0, 0.0], [4, 4]
    )
    assert Choices(costs, HARM, (FAST, FASTER)).point(0).saved == pytest.approx(0.5)  # of b PyTorch's is not known


def test_one_method_everywhere_is_priced_as_the_rest():
    point = _choices().everywhere(FAST)
    assert point.saved == pytest.approx(0.4)
    assert point.harm == pytest.approx(0.7)


def test_candidates_that_are_not_faster_anywhere_are_left_out():
    costs = Costs({"a": 0}, [{DENSE: 1.0, "x": 0.99, "y": 0.5, "z": 0.4}], [0.0], [4])
    assert worth(costs, ["x", "y", "missing", "z"], 5) == ("y", "z")
    assert worth(costs, ["x", "y", "z"], 1) == ("y",)


@pytest.mark.parametrize(("kind", "length"), [("decoder", 4096), ("decoder", 256), ("encoder", 512), ("vision", 1370)])
def test_names_of_candidates_are_methods_own(kind, length):
    names = candidates(kind, length)
    assert len(names) == len(set(names)) > 20
    assert all(parse(name).name == name and not parse(name).keeps_everything for name in names)


def test_an_assignment_is_a_method_for_each_module():
    found = assignment.methods({"a": (FAST, FAST), "b": (FAST, "dense")})
    assert found == {"a": FAST, "b": f"perhead({FAST}_dense)"}
    assert parse(found["b"])
    assert assignment.shares({"a": (FAST, FAST), "b": (FAST, "dense")}) == {FAST: 0.75, "dense": 0.25}


def test_a_path_through_a_method_for_all_heads_begins_dense_and_goes_on_to_faster_ones():
    choices = _choices()
    path = choices.through(FAST)
    assert choices.point(0, path).assignment == choices.point(0).assignment
    assert choices.point(path.single, path).assignment == choices.everywhere(FAST).assignment
    assert choices.point(len(path.moves), path).assignment == choices.most.assignment
    saved = [choices.point(moves, path).saved for moves in range(len(path.moves) + 1)]
    assert saved == sorted(saved)
    half = choices.milder(choices.point(path.single, path), 0.5)
    assert half.through == FAST
    assert half.harm <= 0.35 + 1e-9
    assert {name for names in half.assignment.values() for name in names} == {FAST, DENSE}


def test_a_head_whose_method_is_slower_than_dense_stays_dense_on_the_path_through_it():
    slow = {**SECONDS, FAST: 1.5}
    choices = Choices(Costs({"a": 0, "b": 1}, [SECONDS, slow], [0.0, 0.0], [4, 4]), HARM, (FAST, FASTER))
    path = choices.through(FAST)
    assert choices.point(path.single, path).assignment == {"a": (FAST,) * 4, "b": (DENSE,) * 4}


def test_methods_for_all_heads_are_looked_at_by_family_the_least_harmful_first():
    assert _choices().singles == [[FAST], [FASTER]]
    worse = {module: {**found, FAST: [10.0] * 4} for module, found in HARM.items()}
    assert Choices(Costs({"a": 0, "b": 0}, [SECONDS], [0.0], [4]), worse, (FAST, FASTER)).singles == [[FASTER], [FAST]]


def test_of_a_family_no_method_is_looked_at_that_harms_more_and_is_slower_than_another():
    seconds = {BASELINE: 1.0, DENSE: 1.0, "nm-1-2": 0.8, "nm-2-4": 0.9, "nm-1-4": 0.5}
    harm = {"a": {"nm-1-2": [0.1], "nm-2-4": [0.2], "nm-1-4": [0.9]}}
    choices = Choices(Costs({"a": 0}, [seconds], [0.0], [1]), harm, ("nm-1-2", "nm-2-4", "nm-1-4"))
    assert choices.singles == [["nm-1-2", "nm-1-4"]]
