"""The greedy search: one element after the other is taken out, and stays out where the validation items do not suffer.

    best = the whole model's scores
    for each element, coarse first, inside a level the later layers first:
        scores = those without what is out already and without this one
        out, where the lower bound of  share(scores) − share(best)  is at least −tolerance
        best = scores, where their mean is better

The bound is that of a paired bootstrap over the items: a small set of items, on which noise looks like a gain, keeps
what is not proved useless. Since every trial is held against the best model so far, small losses do not add up.

Source: AxFormer, arXiv:2010.03688, which compares means; the bootstrap is this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dynattn.lab.figures import Interval
from dynattn.lab.frontier.shares import lead
from dynattn.lab.prune.results import Trial
from dynattn.lab.statistics import FEWEST
from dynattn.pruning import Element, Removed


class State(NamedTuple):
    """A model on trial.

    Attributes:
        removed: what is out.
        hard: layers with a method of their own, and its name.
    """

    removed: Removed = Removed()
    hard: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Judge:
    """Decides about trials.

    Args:
        whole: (items,), the validation scores of the whole model.
        higher_is_better: which way is good.
        tolerance: the share of the whole model's quality that may be lost.

    Raises:
        ValueError: there are too few items for a bound.
    """

    whole: np.ndarray
    higher_is_better: bool
    tolerance: float

    def __post_init__(self) -> None:
        if len(self.whole) < FEWEST:
            raise ValueError(
                f"prune: at least {FEWEST} validation items must decide: got {len(self.whole)}; pass more items"
            )

    def trial(self, name: str, scores: np.ndarray, best: np.ndarray) -> Trial:
        """Hold a trial's scores against the best ones so far."""
        if np.isfinite(scores).all():
            change = lead(scores.tolist(), best.tolist(), self.whole.tolist(), self.higher_is_better)
        else:
            change = Interval(mean=-1.0, low=-1.0, high=-1.0)  # everything is lost
        accepted = change.low is not None and change.low >= -self.tolerance
        return Trial(name=name, accepted=accepted, change=change, scores=[float(score) for score in scores])

    def better(self, scores: np.ndarray, best: np.ndarray) -> bool:
        """Whether the mean of scores is better than the best one so far."""
        return bool((scores.mean() > best.mean()) == self.higher_is_better and scores.mean() != best.mean())


class Search:
    """A search that can be stopped: trials that were made already are taken from the record.

    Args:
        judge: decides.
        score: the validation scores of a state.
        made: trials of an earlier run, in their order.
        note: called after each new trial with all that were made.

    Attributes:
        state: what is out now.
        trials: all trials, in order.
    """

    def __init__(
        self, judge: Judge, score: Callable[[State], np.ndarray], made: Sequence[Trial] = (),
        note: Callable[[Sequence[Trial]], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._judge, self._score, self._made, self._note = judge, score, list(made), note
        self._best = judge.whole
        self.state, self.trials = State(), list[Trial]()

    def remove(self, elements: Iterable[Element]) -> list[Element]:
        """Try elements one after the other.

        Args:
            elements: in order.

        Returns:
            Those that stayed.
        """
        return [one for one in elements if not self._try(one.name, self._without(one))]

    def harden(self, layers: Iterable[int], methods: Sequence[str]) -> None:
        """Try cheaper attention in layers, the first method that does no harm.

        Args:
            layers: in order.
            methods: short names, in order.
        """
        for layer in layers:
            for method in methods:
                trial = State(self.state.removed, (*self.state.hard, (layer, method)))
                if self._try(f"attention-{layer}={method}", trial):
                    break

    def _without(self, element: Element) -> State:
        return self.state._replace(removed=self.state.removed.without(element))

    def _try(self, name: str, state: State) -> bool:
        trial = self._known(name)
        if trial is None:
            trial = self._judge.trial(name, self._score(state), self._best)
            self.trials.append(trial)
            self._note(self.trials)
        else:
            self.trials.append(trial)
        if trial.accepted:
            self.state = state
            scores = np.array(trial.scores)
            self._best = scores if self._judge.better(scores, self._best) else self._best
        return trial.accepted

    def _known(self, name: str) -> Trial | None:
        """The trial of an earlier run that comes next; what does not fit is made again."""
        if len(self.trials) < len(self._made) and self._made[len(self.trials)].name == name:
            return self._made[len(self.trials)]
        self._made = []
        return None
