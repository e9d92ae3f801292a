"""What a sweep's page and the terminal say beside its tables: how far each family may go, what was out of reach or left
out, and that a baseline is wrong."""

from __future__ import annotations

from markupsafe import Markup

from dynattn.lab.frontier.alarm import ALARM, beating
from dynattn.lab.frontier.cell import Entry, Phase
from dynattn.lab.frontier.limits import limits
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.summary import at_chance_in, contenders, exams, titles
from dynattn.lab.page import Section, table


def limit_rows(found: Frontier, phase: Phase) -> tuple[list[str], list[list[str]]]:
    """The table of limits: its columns, and a row for each family.

    Args:
        found: the record.
        phase: the phase of the model's work.
    """
    named = titles(exams(found, phase))
    rows = [
        [family, *(str(of_exams[key]) if key in of_exams else "–" for key in named)]
        for family, of_exams in limits(contenders(found, phase)).items()
    ]
    return ["method", *named.values()], rows


def left_out(found: Frontier, phase: Phase) -> list[str]:
    """The exams that are not reported, in a sentence; none where all are."""
    sheets = at_chance_in(found, phase)
    told = []
    for sheet in sheets:
        dense = found.grade(sheet.exam)
        if dense is not None:
            told.append(f"{sheet.exam.title} ({sum(dense.scores) / len(dense.scores):.3f})")
    if not told:
        return []
    return [f"Left out, since dense attention guesses there or does less than the task demands: {', '.join(told)}."]


def unreached(found: Frontier, phase: Phase) -> list[str]:
    """The budgets that no method of a family keeps as measured, in a sentence; none where all are kept."""
    missed = [
        f"{Entry(name=each.name, family=each.search.family, budget=each.search.budget).label} in "
        f"{each.search.exam.title} ({each.kept:.0%})"
        for each in found.solved.values()
        if each.search.exam.phase == phase and not each.in_reach
    ]
    return [f"Out of reach, with the nearest that can be kept: {', '.join(missed)}."] if missed else []


def farthest(found: Frontier, phase: Phase, several: str) -> list[Section]:
    """The section with the table of limits.

    Args:
        found: the record.
        phase: the phase of the model's work.
        several: ends the title where there are several phases.
    """
    columns, rows = limit_rows(found, phase)
    if not rows:
        return []
    shares = "bytes of the cache that a step reads" if phase == "decode" else "query-key pairs"
    note = (
        f"One less the share of dense attention's {shares}, and what is retained there. From the least sparse method "
        "of a family to the sparsest, it is the last before the first that is significantly worse: whose 95% interval, "
        "paired and bootstrapped over the items, leaves 100% out. Few items show few losses. No correction is made for "
        "looking at several methods."
    )
    lines = Markup("").join(Markup("<p>{}</p>").format(line) for line in unreached(found, phase))
    return [Section(f"Largest sparsity without significant loss{several}", table(columns, rows) + str(lines), note)]


def at_chance(found: Frontier, phase: Phase, several: str) -> list[Section]:
    """The section with the exams that are left out, and why; none where none is.

    Args:
        As :func:`farthest`.
    """
    sheets = at_chance_in(found, phase)
    if not sheets:
        return []
    rows = []
    for sheet in sheets:
        dense = found.grade(sheet.exam)
        mean = "–" if dense is None else f"{sum(dense.scores) / len(dense.scores):.3f}"
        demanded = ("–" if value is None else f"{value:.3f}" for value in (sheet.chance, sheet.least))
        rows.append([sheet.exam.title, sheet.metric, mean, *demanded])
    note = (
        "In these exams dense attention does no better than guessing, or less than the task demands for a comparison, "
        "so nothing can be concluded: they have no part in the choice."
    )
    columns = ["exam", "metric", "dense", "guessing gives", "demanded"]
    return [Section(f"Dense at chance{several}", table(columns, rows), note)]


def alarm(found: Frontier) -> list[Section]:
    """The section that says that a baseline is wrong; none where no method beats dense attention beyond chance."""
    wrong = beating(found)
    if not wrong:
        return []
    rows = [
        [one.cell.entry.label, one.cell.exam.title, one.cell.exam.phase, f"{one.gain:.4f}", f"{one.chance:.1g}"]
        for one in wrong
    ]
    note = (
        f"No method knows more than dense attention. Of {wrong[0].cells} cells these gain more than chance gives to "
        f"one of so many ({ALARM:.0%} over their number), so that dense attention is likely to have been measured "
        "wrongly."
    )
    columns = ["method", "exam", "phase", "better by", "by chance"]
    return [Section("Better than dense attention: something is wrong", table(columns, rows), note)]
