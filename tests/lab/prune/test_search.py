"""The search finds what is useless, and nothing else; it goes on where it was stopped."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("transformers")

from dynattn.lab.prune.results import Trial
from dynattn.lab.prune.search import Judge, Search, State
from dynattn.pruning import Element
from dynattn.pruning.structure import blocks, parts
from tests.pruning.structure.models import inputs, make, output

ITEMS = np.linspace(0.5, 0.9, 8)


def _judge(tolerance: float = 0.0, higher: bool = True) -> Judge:
    return Judge(ITEMS, higher, tolerance)


def _useless(model, names) -> None:
    """Let parts of a model do nothing: their columns of the output are 0."""
    for element in map(Element.from_name, names):
        layer, place = model.model.layers[element.layer], slice(element.start, element.stop)
        if element.kind == "heads":
            layer.self_attn.o_proj.weight.data.view(32, 4, 8)[:, place] = 0
        else:
            layer.mlp.down_proj.weight.data[:, place] = 0


def test_it_finds_the_parts_that_are_known_to_be_useless():
    model, given = make("llama"), inputs("llama")
    useless = {"heads-2-2-4", "heads-0-0-2", "neurons-1-6-12"}
    _useless(model, useless)
    dense = output(model, given)

    def score(state: State) -> np.ndarray:
        with state.removed.apply(model):
            wrong = (output(model, given) - dense).abs().amax(-1)[:8]
        return ITEMS - wrong.numpy()

    search = Search(_judge(1e-4), score)
    stayed = search.remove(blocks(model))
    assert len(stayed) == 6
    search.remove(part for block in stayed for part in parts(model, block))
    assert set(search.state.removed.names) == useless


def test_a_block_that_went_has_no_parts_to_try():
    def score(state: State) -> np.ndarray:
        return ITEMS - 0.1 * sum(element.name not in ("mlp-2", "mlp-0") for element in state.removed.elements)

    search = Search(_judge(), score)
    stayed = search.remove(blocks(make("bert")))
    assert search.state.removed.names == ("mlp-0", "mlp-2")
    assert [element.name for element in stayed] == ["attention-2", "attention-1", "attention-0", "mlp-1"]
    assert [trial.accepted for trial in search.trials] == [False, False, False, True, False, True]


@pytest.mark.parametrize(("higher", "sign"), [(True, -1), (False, 1)])
def test_small_losses_do_not_add_up(higher, sign):
    """Each costs 0.4%, and 1% is allowed in all, against the best model and not against the one before."""
    score = lambda state: ITEMS + sign * 0.004 * ITEMS.mean() * len(state.removed.elements)  # noqa: E731
    search = Search(_judge(0.01, higher), score)
    search.remove(Element("mlp", layer) for layer in range(6))
    assert len(search.state.removed.elements) == (2 if higher else 3)  # of a likelihood, 0.4% of 0.7 nats are less


def test_a_gain_raises_what_others_are_held_against():
    better = {"mlp-0": 0.1, "mlp-1": -0.05}
    score = lambda state: ITEMS + sum(better[element.name] for element in state.removed.elements)  # noqa: E731
    search = Search(_judge(), score)
    search.remove(map(Element.from_name, better))
    assert search.state.removed.names == ("mlp-0",)  # though without both it would still be better than whole


def test_noise_is_no_proof():
    """A mean that is a little better, of items that go up and down: kept, since the bound is far below."""
    noise = np.array([0.2, -0.18, 0.15, -0.14, 0.12, -0.11, 0.1, -0.1])
    assert noise.mean() > 0
    search = Search(_judge(), lambda _: ITEMS + noise)
    search.remove([Element("mlp", 0)])
    assert not search.trials[0].accepted
    assert search.trials[0].change.mean > 0
    search = Search(_judge(0.2), lambda _: ITEMS + noise)  # unless so much may be lost
    search.remove([Element("mlp", 0)])
    assert search.trials[0].accepted


def test_scores_that_are_not_finite_are_refused():
    search = Search(_judge(0.5), lambda _: np.full(8, np.nan))
    search.remove([Element("mlp", 0)])
    assert not search.trials[0].accepted


def test_it_goes_on_where_it_was_stopped():
    asked = []

    def score(state: State) -> np.ndarray:
        asked.append(state.removed.names)
        return ITEMS - 0.1 * sum(element.layer == 1 for element in state.removed.elements)

    elements = [Element("mlp", layer) for layer in (3, 2, 1, 0)]
    noted: list[list[Trial]] = []
    whole = Search(_judge(), score, note=lambda trials: noted.append(list(trials)))
    whole.remove(elements)
    assert [len(trials) for trials in noted] == [1, 2, 3, 4]
    asked.clear()
    again = Search(_judge(), score, noted[1])
    again.remove(elements)
    assert asked == [("mlp-1", "mlp-2", "mlp-3"), ("mlp-0", "mlp-2", "mlp-3")]
    assert (again.state, again.trials) == (whole.state, whole.trials)


def test_a_record_of_other_trials_is_not_believed():
    made = [Trial(name="mlp-5", accepted=True, change=Search(_judge(), lambda _: ITEMS)._judge.trial(
        "mlp-5", ITEMS, ITEMS).change, scores=ITEMS.tolist())]  # fmt: skip
    search = Search(_judge(), lambda _: ITEMS - 1, made)
    search.remove([Element("mlp", 0)])
    assert [trial.name for trial in search.trials] == ["mlp-0"]
    assert not search.state.removed.elements


def test_cheaper_attention_is_tried_layer_by_layer():
    harm = {(1, "topk-0.25"): 0.3, (0, "topk-0.25"): 0.3, (0, "topk-0.5"): 0.3}
    search = Search(_judge(), lambda state: ITEMS - sum(harm.get(one, 0) for one in state.hard))
    search.harden([2, 1, 0], ("topk-0.25", "topk-0.5"))
    assert search.state.hard == ((2, "topk-0.25"), (1, "topk-0.5"))
    assert [trial.name for trial in search.trials][:2] == ["attention-2=topk-0.25", "attention-1=topk-0.25"]


def test_too_few_items_are_refused():
    with pytest.raises(ValueError, match="at least 4 validation items"):
        Judge(ITEMS[:3], True, 0.0)
