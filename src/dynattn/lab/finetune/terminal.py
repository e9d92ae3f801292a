"""A study in a terminal: its table, and its findings in words."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from dynattn.lab.figures import BASELINE
from dynattn.lab.finetune.document import how_sure, sentences, swapped_in, trained
from dynattn.lab.terminal import Grid, print_grid, say
from dynattn.lab.training.results import Arm, Contrast, Study
from dynattn.lab.words import interval, label, reading

_STYLES = {"worse": "red", "better": "green"}


def show(found: Study, console: Console) -> None:
    """Print the table, how sure it is, and the findings.

    Args:
        found: the study.
        console: where to print.
    """
    print_grid(console, summary(found))
    for line in (found.summary, how_sure(found)):
        say(console, line, "dim")
    for line in sentences(found):
        say(console, line)


def summary(found: Study) -> Grid:
    """A row for each method: scores and differences to dense in each state, what training gained, and the time of a
    step.

    The gain is over the untrained model; where there is none, over dense weights with the method swapped in.
    """
    before, between = found.of(BASELINE, trained=False) is not None, swapped_in(found)
    states = ["without training"] * before + ["swapped in"] * between + [trained(found)]
    columns = ["method"]
    for state in states:
        columns += [state, f"{state}\nless dense [95%]"]
    columns += ["gain [95%]"] * (before or between) + ["s a step"]
    rows = []
    for method in found.methods:
        after = found.of(method, trained=True)
        cells = _cells(found, found.of(method, trained=False)) if before else []
        cells += _cells(found, found.of(method, trained=True, swapped=True)) if between else []
        cells += _cells(found, after)
        if before or between:
            cells.append(_colored(found, after.gain or after.recovered) if after else "–")
        seconds = f"{after.seconds.median:.2f}" if after and after.seconds else "–"
        rows.append([label(method), *cells, seconds])
    return Grid(f"{found.name}: {found.metric}", columns, rows)


def _cells(found: Study, arm: Arm | None) -> list[str | Text]:
    if arm is None:
        return ["–", "–"]
    return [f"{arm.score.mean:.4f}", _colored(found, arm.difference)]


def _colored(found: Study, contrast: Contrast | None) -> Text:
    return Text(interval(contrast), _STYLES.get(reading(contrast, found.higher_is_better), ""))
