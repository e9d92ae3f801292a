"""Writes names, numbers and verdicts as words, the same in every table, page and terminal."""

from __future__ import annotations

import math

from markupsafe import Markup

from dynattn.lab.figures import BASELINE, UNFUSED, Interval, Quality, TaskResult
from dynattn.lab.statistics import at_chance
from dynattn.methods import NM, parse

NOT_FINITE = "not finite"
NO_CONCLUSION = "dense is at chance, so nothing can be concluded"
_MINUS = "−"


def label(method: str) -> str:
    """A method's name, for people: ``nm-1-2-x16-w64`` as ``1:2, stride 16, window 64``; others as they are."""
    if method == BASELINE:
        return "SDPA (dense)"
    if method == UNFUSED:
        return "unfused (eager)"
    if method == "dense":
        return "dense, own kernel"
    if NM.from_name(method) is None:
        return method
    _, n, m, *rest = parse(method).name.split("-")
    words = [f"{n}:{m}"]
    for part in rest:
        count = int(part[1:])
        if part[0] == "s":
            words.append(f"{count} sink{'s' * (count != 1)}")
        else:
            words.append(f"{'stride' if part[0] == 'x' else 'window'} {count}")
    return ", ".join(words)


def signed(value: float, digits: int = 4) -> str:
    """With its sign, ``+`` too."""
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return ("+" if value > 0 else _MINUS) + text


def interval(found: Interval | None) -> str:
    """Mean and bounds: ``−0.0013 [−0.0122, +0.0091]``."""
    if found is None:
        return "–"
    if not math.isfinite(found.mean):
        return NOT_FINITE
    if found.low is None or found.high is None:
        return f"{signed(found.mean)} (too few items for an interval)"
    return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"


def percent(found: Interval) -> str:
    """A share with its bounds, where there are any: ``97.0% [95.1%, 99.0%]``."""
    bounds = "" if found.low is None or found.high is None else f" [{found.low:.1%}, {found.high:.1%}]"
    return f"{found.mean:.1%}{bounds}"


def reading(found: Interval | None, higher_is_better: bool) -> str:
    """``worse``, ``better`` or ``within noise``: whether the interval leaves zero out; ``same`` where nothing moved.

    ``not finite`` where a score is not, and an interval has no meaning.
    """
    if found is not None and not math.isfinite(found.mean):
        return NOT_FINITE
    if found is None or found.low is None or found.high is None:
        return "–"
    if max(abs(found.low), abs(found.high)) < 1e-6:
        return "same"
    if not found.clear:
        return "within noise"
    return "better" if (found.mean > 0) == higher_is_better else "worse"


def verdict(task: TaskResult, result: Quality) -> str:
    """:func:`reading` of a method's difference to dense; where dense is at chance, that no difference says anything."""
    dense = task.of(BASELINE).scores
    if all(map(math.isfinite, dense)) and at_chance(tuple(dense), task.chance, task.higher_is_better):
        return NO_CONCLUSION
    return reading(result.difference, task.higher_is_better)


def colored(word: str, text: str) -> Markup:
    """Text in the colour of a :func:`reading`."""
    return Markup('<span class="{}">{}</span>').format({"worse": "bad", "better": "good"}.get(word, "soft"), text)
