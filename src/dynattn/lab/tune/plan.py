"""How many texts, candidates and rounds a number of minutes allows, in forwards of the dense model.

What costs is the model's forward; everything is counted in it. The least that a claim needs is fixed: where the minutes
do not allow that, nothing is begun. Whatever is left goes to the search and the proof alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

ROUNDS = 3
_RACED = 5  # assignments that are raced before the proof where there are methods of the whole model
_SAMPLED = 0.3  # of a call's pairs are computed for each candidate, see sensitivity.py
_SHARE_OF_KERNELS = 0.05  # of the time, for timing candidates
_RESERVE = 0.06  # of the time: the report, what a forward takes longer at times
_STEPS = 1000  # between the least and the most
_SOONER = 10  # times as soon as items, all candidates take part
_FASTER = 0.95  # of a dense forward, that of a method


class Counts(NamedTuple):
    """How much there is of each.

    Attributes:
        search: entries of the search's exams.
        search_second: of these, how many are looked at for what heads can spare in the unlike task.
        prove: entries of the proof's exams.
        candidates: methods.
    """

    search: int
    search_second: int
    prove: int
    candidates: int

    @property
    def points(self) -> int:
        """Whole assignments that are measured: the more texts tell them apart, the more of them."""
        return self.search + 4


LEAST = Counts(search=3, search_second=1, prove=15, candidates=10)
MOST = Counts(search=8, search_second=3, prove=96, candidates=32)


@dataclass(frozen=True)
class Plan:
    """What is done in the time.

    Attributes:
        counts: how many items and candidates there are.
        points: whole assignments that are measured.
        kernels: seconds for timing candidates.
        rounds: how many rounds the whole model is timed for.
    """

    counts: Counts
    points: int
    kernels: float
    rounds: int


def cost(
    counts: Counts, entry: float, share: float, second: bool, shorter: int = 0, forward: float | None = None
) -> float:
    """Seconds that counts take.

    Args:
        counts: how many items and candidates there are.
        entry: seconds that the dense model takes for one item that is counted.
        share: the share of attention in it.
        second: whether there is an unlike task, whose scores come along with the others.
        shorter: how often it is measured what is lost where there are methods of the whole model.
        forward: seconds of one forward, where an item takes several.
    """
    forward = entry if forward is None else forward
    looked = counts.search + (counts.search_second if second else 0)
    beside = forward * looked * (1 + share * _SAMPLED * counts.candidates)  # every candidate, in a dense forward
    scored = counts.search * (1 + _FASTER * (counts.points + shorter))  # dense scores, whole assignments
    proof = counts.prove * (1 + _FASTER)
    races = 1 if not shorter else 1 + _RACED
    return entry * (scored + proof) + beside + forward * 2 * (ROUNDS + 1) * races


def plan(
    seconds: float, entry: float, share: float, second: bool, shorter: int = 0, forward: float | None = None
) -> Plan | None:
    """The most that the time allows.

    Args:
        seconds: that are left.
        entry, share, second, shorter, forward: as :func:`cost` takes them.

    Returns:
        The plan; None where the least does not fit.
    """
    room = seconds * (1 - _RESERVE - _SHARE_OF_KERNELS)
    if cost(LEAST, entry, share, second, shorter, forward) > room:
        return None
    steps = range(_STEPS, -1, -1)
    counts = next(each for each in map(_between, steps) if cost(each, entry, share, second, shorter, forward) <= room)
    return Plan(counts, counts.points, seconds * _SHARE_OF_KERNELS, ROUNDS)


def least_seconds(entry: float, share: float, second: bool, shorter: int = 0, forward: float | None = None) -> float:
    """Seconds without which nothing can be claimed."""
    return cost(LEAST, entry, share, second, shorter, forward) / (1 - _RESERVE - _SHARE_OF_KERNELS)


def _between(step: int) -> Counts:
    """From the least to the most: candidates first, which cost little, then items."""
    grown = [few + (many - few) * step // _STEPS for few, many in zip(LEAST, MOST, strict=True)]
    candidates = LEAST.candidates + (MOST.candidates - LEAST.candidates) * min(_STEPS, _SOONER * step) // _STEPS
    return Counts(*grown)._replace(candidates=candidates)
