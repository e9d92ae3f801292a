"""The three story tasks: every answer can be derived from the text by rules, without a model."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from dynattn.lab.tasks import find
from tests.lab.tasks.reading import asked_of
from tests.lab.tasks.solver import read, solve


@pytest.mark.parametrize(
    ("name", "count", "right"), [("story-retrieval", 16, 1), ("story-multi-hop", 4, 1), ("story-filtering", 1, 3)]
)
@pytest.mark.parametrize("tokens", [4000, 9000])
def test_rules_derive_the_answers_from_the_text(name: str, count: int, right: int, tokens: int):
    kinds = set()
    for text, questions in asked_of(find(name)(items=3, tokens=tokens)):  # type: ignore[call-arg]
        facts = read(text)
        assert len(questions) == count
        assert len({question.text.split("Question: ")[-1] for question in questions}) == count
        for question in questions:
            last = question.text.split("Question: ")[-1]
            end, answers = solve(facts, last)
            assert len(answers) == right
            assert question.right == {question.goes_on(end, answer) for answer in answers}
            known = {*facts.met, *facts.met.values(), *facts.bought.values()} - set(answers)
            assert question.wrong <= {question.goes_on(end, word) for word in known}
            kinds.add(last.split()[0])
    assert kinds == {
        "story-retrieval": {"Whom", "Where", "What"}, "story-multi-hop": {"Which"}, "story-filtering": {"In"},
    }[name]  # fmt: skip


def test_a_wrong_story_is_noticed_by_the_rules():
    """The rules do not take the generator's word: another item in the text gives another answer."""
    ((text, questions),) = asked_of(find("story-multi-hop")(items=1, tokens=4000))  # type: ignore[call-arg]
    question = questions[0].text.split("Question: ")[-1]
    _, (answer,) = solve(read(text), question)
    _, (other,) = solve(read(text.replace(f"was a {answer}.", "was a zither.")), question)
    assert other == "zither" != answer
