"""Accuracies that need no attention: a trained model that does not exceed them has learnt nothing.

majority:       the commonest class
first token:    the commonest class of each first token; in ListOps that is the outermost operator
bag of tokens:  softmax(W · log(1 + counts) + b), the order of the tokens ignored
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dynattn.lab.lra.data import Data, Split

_MOST_EXAMPLES = 5000  # for the bag of tokens; on ListOps, four times as many examples give 26.6% instead of 27.1%
_ITERATIONS = 1000


class Baselines(NamedTuple):
    """Accuracies on the held-out part, between 0 and 1.

    Attributes:
        chance: one over the number of classes.
        majority, first_token, bag: see the module.
    """

    chance: float
    majority: float
    first_token: float
    bag: float

    def __str__(self) -> str:
        return (
            f"chance {self.chance:.1%}, commonest class {self.majority:.1%}, "
            f"by the first token {self.first_token:.1%}, by a bag of tokens {self.bag:.1%}"
        )


def baselines(data: Data) -> Baselines:
    """Fit all to the training part and score them on the held-out part.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    train, test = data.train, data.test
    majority = np.bincount(train.labels, minlength=data.classes).argmax()
    return Baselines(
        chance=1 / data.classes,
        majority=float((test.labels == majority).mean()),
        first_token=first_token(data),
        bag=_bag(data),
    )


def first_token(data: Data) -> float:
    """Accuracy of the commonest class of each first token."""
    votes = np.zeros((data.vocabulary, data.classes), int)
    np.add.at(votes, (_firsts(data.train), data.train.labels), 1)
    # A token never seen first gets the commonest class, which a small share of all votes brings about.
    guess = (votes + votes.sum(0) / (len(data.train.labels) + 1)).argmax(1)
    return float((guess[_firsts(data.test)] == data.test.labels).mean())


def _firsts(split: Split) -> np.ndarray:
    return np.array([tokens[0] for tokens in split.tokens])


def _bag(data: Data) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    fitted_to = slice(_MOST_EXAMPLES)
    model.fit(_counts(data.train.tokens[fitted_to], data.vocabulary), data.train.labels[fitted_to])
    return float(model.score(_counts(data.test.tokens, data.vocabulary), data.test.labels))


def _counts(tokens, vocabulary: int) -> np.ndarray:
    return np.log1p(np.stack([np.bincount(each, minlength=vocabulary) for each in tokens]))
