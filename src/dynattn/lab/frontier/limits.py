"""The largest sparsity that is not significantly worse than dense attention, of every family in every exam.

    sparsity = 1 - kept,  kept: pairs of a forward or, while decoding, bytes of the cache, over those of dense attention

A family's methods are taken from the one that keeps the most to the one that keeps the least. Its limit is the last one
before the first that is significantly worse: that the 95% interval of what it retains, paired and bootstrapped over the
items, leaves 100% out. A sparser one that comes off better by luck, behind one that is worse, does not count.

Few items show few losses, so that a limit never stands without what is retained there.

Source: The Sparse Frontier, arXiv:2504.17768; the test is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dynattn.lab.figures import Interval
from dynattn.lab.frontier.results import Sheet
from dynattn.lab.frontier.summary import Contender, ExamResult


class Limit(NamedTuple):
    """How far a family may go in an exam.

    Attributes:
        family: the name of the family; of a method that was named, its own.
        sheet: the exam.
        sparsity: the largest that is not significantly worse; None where the least sparse method is.
        retained: what is retained there, or where ``sparsity`` is None by the least sparse method.
        sparser: whether sparser ones were measured, which then are worse; else the limit may be farther.
    """

    family: str
    sheet: Sheet
    sparsity: float | None
    retained: Interval
    sparser: bool

    def __str__(self) -> str:
        """``79%: 98.1% [95.0, 101.3]``, ``at least 95%: …``, or ``none: …``."""
        low, high = self.retained.low, self.retained.high
        bounds = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
        head = "none" if self.sparsity is None else f"{'' if self.sparser else 'at least '}{self.sparsity:.0%}"
        return f"{head}: {self.retained.mean:.1%}{bounds}"


def limits(contenders: Sequence[Contender]) -> dict[str, dict[str, Limit]]:
    """By family, and by the address of the exam.

    Args:
        contenders: those of one phase.

    Returns:
        Limits; none of a family that keeps no pairs, and none in an exam that has too few items for intervals or in
        which dense attention does too little.
    """
    grouped: dict[str, dict[str, list[ExamResult]]] = {}
    for contender in contenders:
        for result in contender.results:
            if result.kept is not None and result.retained.high is not None and not result.at_chance:
                exams = grouped.setdefault(contender.entry.family, {})
                exams.setdefault(result.sheet.exam.key, []).append(result)
    return {
        family: {key: _limit(family, results) for key, results in exams.items()} for family, exams in grouped.items()
    }


def _limit(family: str, results: Sequence[ExamResult]) -> Limit:
    ordered = sorted(results, key=lambda result: -_kept(result))
    last = None
    for result in ordered:
        if result.retained.high is not None and result.retained.high < 1:
            if last is None:
                return Limit(family, result.sheet, None, result.retained, True)
            return Limit(family, last.sheet, 1 - _kept(last), last.retained, True)
        last = result
    end = ordered[-1]
    return Limit(family, end.sheet, 1 - _kept(end), end.retained, False)


def _kept(result: ExamResult) -> float:
    return result.kept if result.kept is not None else 1.0
