"""The generator of ListOps against an evaluator that reads the written expression, and against the published rules."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from dynattn.lab.lra import listops
from dynattn.lab.lra.listops import OPERATORS, TOKENS, Rules, generate, load, text

SMALL = Rules(max_depth=4, max_args=5, min_length=15, max_length=64)


def parse(words: list[str]):
    """The tree of an expression: a digit, or an operator with its list of trees. Takes its words off the front."""
    word = words.pop(0)
    if word not in OPERATORS:
        return int(word)
    parts = []
    while words[0] != "]":
        parts.append(parse(words))
    words.pop(0)
    return word, parts


def tree(expression: str):
    words = expression.split()
    found = parse(words)
    assert not words, f"{words} stand behind the end of the expression"
    return found


def value(node) -> int:
    """By the definitions of arXiv:1804.06028, with numpy's median where the generator sorts."""
    if isinstance(node, int):
        return node
    operator, parts = node
    values = [value(part) for part in parts]
    by_name = {"[MIN": np.min, "[MAX": np.max, "[MED": np.median, "[SM": lambda them: np.sum(them) % 10}
    return int(by_name[operator](values))


def depth(node) -> int:
    return 1 if isinstance(node, int) else 1 + max(map(depth, node[1]))


def arguments(node) -> list[int]:
    return [] if isinstance(node, int) else [len(node[1])] + [n for part in node[1] for n in arguments(part)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),  # the example of both papers
        ("[MED 1 5 3 2 ]", 2),  # between 2 and 3, rounded down
        ("[MED 9 0 4 ]", 4),
        ("[MED 7 8 ]", 7),
        ("[SM 9 8 7 ]", 4),
        ("[MIN [SM 5 5 ] [MAX 0 [MED 3 6 9 ] ] 4 ]", 0),
        ("[SM [MIN 3 [MAX 1 8 ] ] [MED 2 [SM 6 6 ] 9 4 ] ]", 6),  # 3 + the median of 2 2 9 4, which is 3
    ],
)
def test_values_computed_by_hand(expression, expected):
    assert value(tree(expression)) == expected


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_generator_computes_what_the_expression_says(operator):
    """On expressions whose outermost operator is this one, so that an error in any of the four is seen."""
    found = generate(SMALL, 400, seed=1)
    checked = [(text(t), v) for t, v in zip(found.tokens, found.labels, strict=True) if text(t).startswith(operator)]
    assert len(checked) > 50
    assert [value(tree(expression)) for expression, _ in checked] == [label for _, label in checked]


@pytest.mark.parametrize("rules", [SMALL, Rules(), Rules(max_depth=3, max_args=9, min_length=20, max_length=24)])
def test_expressions_keep_to_the_rules(rules):
    found = generate(rules, 40, seed=3)
    trees = [tree(text(tokens)) for tokens in found.tokens]
    lengths = [len(tokens) for tokens in found.tokens]
    assert rules.min_length < min(lengths) <= max(lengths) < rules.max_length
    assert max(map(depth, trees)) == rules.max_depth
    widths = [width for each in trees for width in arguments(each)]
    assert min(widths) == 2
    assert max(widths) == rules.max_args
    assert all(value(each) == label for each, label in zip(trees, found.labels, strict=True))


def test_both_bounds_of_the_length_are_strict():
    found = generate(Rules(max_depth=3, max_args=9, min_length=20, max_length=22), 30, seed=0)
    assert {len(tokens) for tokens in found.tokens} == {21}


def test_trees_are_drawn_with_the_published_probabilities():
    """Before any is refused for its length: 1 in 4 an operator, all of them, all digits and all widths alike."""
    draw, rules = random.Random(0), Rules(max_depth=3, max_args=6, min_length=0, max_length=10**6)
    roots, digits, widths = [], Counter(), Counter()
    for _ in range(12_000):
        tokens = bytearray()
        listops._tree(draw, 1, rules, tokens)
        words = [TOKENS[token] for token in tokens]
        roots.append(words[0])
        digits.update(word for word in words if word.isdigit())
        widths.update(arguments(tree(" ".join(words))))
    operators = Counter(root for root in roots if root in OPERATORS)
    assert sum(operators.values()) == pytest.approx(3000, abs=4 * (12_000 * 0.25 * 0.75) ** 0.5)  # 4 sigma
    for counts, kinds in ((operators, 4), (digits, 10), (widths, 5)):
        total = sum(counts.values())
        assert len(counts) == kinds
        for count in counts.values():
            assert count == pytest.approx(total / kinds, abs=4.5 * (total / kinds) ** 0.5)
    assert set(widths) == {2, 3, 4, 5, 6}


def test_a_seed_decides_everything_and_a_smaller_count_is_a_prefix():
    once, again, other = generate(SMALL, 50, 7), generate(SMALL, 20, 7), generate(SMALL, 50, 8)
    assert [text(t) for t in once.tokens[:20]] == [text(t) for t in again.tokens]
    assert list(once.labels[:20]) == list(again.labels)
    assert [text(t) for t in once.tokens] != [text(t) for t in other.tokens]


def test_none_occurs_twice_where_few_are_possible():
    narrow = Rules(max_depth=2, max_args=2, min_length=3, max_length=5)  # [OP a b ]: 400 of them
    found = generate(narrow, 380, seed=0)
    assert len({text(tokens) for tokens in found.tokens}) == 380


def test_what_is_held_out_is_not_learnt_from_and_stays():
    data, more = load(SMALL, train=200, test=30), load(SMALL, train=300, test=30)
    learnt, held_out = ({text(t) for t in part.tokens} for part in (data.train, data.test))
    assert (len(learnt), len(held_out)) == (200, 30)
    assert not learnt & held_out
    assert held_out == {text(t) for t in more.test.tokens}
    assert data.vocabulary == 16
    assert max(max(t) for t in data.train.tokens) == 15
    assert min(min(t) for t in data.train.tokens) == 1
    assert data.length == max(SMALL.max_length - 1, *(len(t) for t in data.train.tokens))


def test_rules_that_no_tree_follows_are_refused():
    with pytest.raises(ValueError, match="Rules: max_depth and max_args"):
        Rules(max_depth=1)
    with pytest.raises(ValueError, match="Rules: max_depth and max_args"):
        Rules(min_length=500, max_length=501)
    with pytest.raises(ValueError, match=r"generate: trees must be found .* got 0 of 1"):
        generate(Rules(max_depth=2, max_args=2, min_length=10, max_length=20), 1, seed=0)
