"""ListOps: the value of a nested expression over digits, as in ``[MAX 2 9 [MIN 4 7 ] 0 ]``, which is 9.

    tree(depth) = a digit                                     with probability 3/4, and always at the greatest depth
                = an operator over 2 … max_args trees(depth + 1)   otherwise

Digits, operators and numbers of arguments are uniform; operators are MIN, MAX, MED (the median, rounded down) and SM
(the sum modulo 10). Trees whose number of tokens is not strictly between two bounds are drawn anew, and none occurs
twice. An expression is written in 15 tokens: 10 digits, 4 operators that open a list, and the bracket that closes it.

Source: Nangia and Bowman, "ListOps", arXiv:1804.06028; rules and bounds of the long version: Long Range Arena,
arXiv:2011.04006, and the generator that its authors published (github.com/google-research/long-range-arena).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from dynattn.lab.lra.data import Data, Split

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = (*map(str, range(10)), *OPERATORS, "]")
"""Words in the order of their ids: ``TOKENS[i]`` has the id ``i + 1``, since 0 is padding."""

CLASSES = 10
_OPERATOR_P = 0.25  # the published VALUE_P, which is, against its name, the probability of an operator
_FIRST_OPERATOR = 10
_CLOSE = 14
_MOST_DRAWS = 10_000  # for one tree, on average; the published rules need 11


@dataclass(frozen=True)
class Rules:
    """What trees may be like; the defaults are the published ones.

    Args:
        max_depth: the largest depth of a tree, where the root has depth 1 and no digit is deeper.
        max_args: the most arguments of an operator; the fewest are 2.
        min_length: trees have more tokens than this.
        max_length: trees have fewer tokens than this.

    Raises:
        ValueError: no tree can follow the rules.
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000

    def __post_init__(self) -> None:
        if self.max_depth < 2 or self.max_args < 2 or not 0 <= self.min_length < self.max_length - 1:
            raise ValueError(
                "Rules: max_depth and max_args must be at least 2 and leave a length between min_length and "
                f"max_length: got {self}; try Rules()"
            )


class _TooLongError(Exception):
    """The tree that is being drawn has too many tokens already."""


def generate(rules: Rules, count: int, seed: int) -> Split:
    """Draw expressions, none twice.

    Args:
        rules: what they may be like.
        count: how many.
        seed: the same one gives the same expressions, and a smaller count a prefix of them.

    Returns:
        Token ids (uint8) and values.

    Raises:
        ValueError: trees that follow the rules are too rare, or fewer than ``count``.
    """
    draw = random.Random(seed)
    found: dict[bytes, int] = {}
    for _ in range(_MOST_DRAWS * max(count, 1)):
        if len(found) == count:
            break
        tokens = bytearray()
        try:
            value = _tree(draw, 1, rules, tokens)
        except _TooLongError:
            continue
        if len(tokens) > rules.min_length:
            found.setdefault(bytes(tokens), value)
    else:
        raise ValueError(
            f"generate: trees must be found within {_MOST_DRAWS} draws each: got {len(found)} of {count} "
            f"under {rules}; allow more lengths, or deeper and wider trees"
        )
    return Split([np.frombuffer(tokens, np.uint8) + np.uint8(1) for tokens in found], np.array([*found.values()], int))


def text(tokens: np.ndarray) -> str:
    """The expression that token ids stand for, words separated by blanks."""
    return " ".join(TOKENS[token - 1] for token in tokens)


def load(rules: Rules, train: int, test: int, seed: int = 0) -> Data:
    """Expressions to learn from and others to be tested on.

    Args:
        rules: what they may be like.
        train: how many to learn from.
        test: how many to be tested on; they stay the same when ``train`` changes.
        seed: the seed of the generator.

    Raises:
        As :func:`generate`.
    """
    every = generate(rules, test + train, seed)
    return Data(
        train=Split(every.tokens[test:], every.labels[test:]),
        test=Split(every.tokens[:test], every.labels[:test]),
        vocabulary=len(TOKENS) + 1,
        classes=CLASSES,
        length=rules.max_length - 1,
        ragged=True,
        source=f"expressions of {rules.min_length + 1} to {rules.max_length - 1} tokens, at most {rules.max_depth} "
        f"deep and {rules.max_args} wide, drawn by the published rules (seed {seed})",
    )


def _tree(draw: random.Random, depth: int, rules: Rules, tokens: bytearray) -> int:
    """Append a tree's tokens; returns its value. Giving up early changes no probability: the tree is refused anyway."""
    if len(tokens) >= rules.max_length - 1:
        raise _TooLongError
    if depth == rules.max_depth or draw.random() >= _OPERATOR_P:
        digit = draw.randrange(10)
        tokens.append(digit)
        return digit
    operator = draw.randrange(len(OPERATORS))
    tokens.append(_FIRST_OPERATOR + operator)
    values = [_tree(draw, depth + 1, rules, tokens) for _ in range(draw.randint(2, rules.max_args))]
    if len(tokens) >= rules.max_length - 1:
        raise _TooLongError
    tokens.append(_CLOSE)
    return _apply(OPERATORS[operator], values)


def _apply(operator: str, values: list[int]) -> int:
    if operator == "[MIN":
        return min(values)
    if operator == "[MAX":
        return max(values)
    if operator == "[SM":
        return sum(values) % 10
    middle = sorted(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]  # one value, or two
    return sum(middle) // len(middle)
