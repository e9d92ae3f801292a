"""The page of a tuning."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from dynattn.lab.machine import describe
from dynattn.lab.page import Section, facts, render, table
from dynattn.lab.tune import plots
from dynattn.lab.tune.assignment import shares
from dynattn.lab.tune.linears.words import grid, sentence
from dynattn.lab.tune.results import Tuning, WholeModel
from dynattn.lab.tune.terminal import losses, sentences
from dynattn.lab.tune.whole import methods
from dynattn.lab.words import label


def page(found: Tuning) -> str:
    """The report, one HTML text that refers to nothing outside itself.

    Args:
        found: the run.
    """
    title = f"{found.model}, tuned" if found.verdict == "faster" else f"{found.model}: keep dense attention"
    return render(title, f"{found.description}. {describe(found.machine)}", sections(found))


def sections(found: Tuning) -> list[Section]:
    """What the page is made of."""
    return [
        _verdict(found), *_proof(found), *_assignment(found), *_linears(found), *_whole(found), _time(found),
        *_considered(found), _run(found),
    ]  # fmt: skip


def _verdict(found: Tuning) -> Section:
    lines = Markup("").join(Markup("<li>{}</li>").format(line) for line in sentences(found))
    use = ""
    if found.verdict == "faster":
        use = Markup('<pre>dynattn.integrations.transformers.load(model, "model.dynattn.json")</pre>')
    return Section("What was found", Markup("<ul>{}</ul>{}").format(lines, use))


def _proof(found: Tuning) -> list[Section]:
    if not found.tries:
        return []
    grid = losses(found)
    note = (
        "Loss: of a likelihood, exp(ΔNLL) − 1, by how much the perplexity grows; else the share of the score that "
        "went. The loss is below the bound with the confidence told; bounds are one-sided, of paired differences, and "
        "hold although the proof may stop early. The tries share the 5% that a claim may be wrong."
    )
    if found.exact:
        note = f"None of these is what is written: that is dense attention, which loses nothing. {note}"
    return [Section("What was lost", table(grid.columns, [[str(cell) for cell in row] for row in grid.rows]), note)]


def _assignment(found: Tuning) -> list[Section]:
    if not found.heads:
        return []
    rows = [[label(name), name, f"{share:.0%}"] for name, share in shares(found.heads).items()]
    body = Markup("<figure>{}<figcaption>{}</figcaption></figure>{}").format(
        Markup(plots.assignment(found)),
        plots.ASSIGNMENT_CAPTION,
        Markup(table(["method", "name", "of all heads"], rows)),
    )
    return [Section("Which head attends how", body)]


def _linears(found: Tuning) -> list[Section]:
    if found.linears is None:
        return []
    made = grid(methods(found.linears))
    return [Section(made.title, table(made.columns, [list(map(str, row)) for row in made.rows]))]


def _whole(found: Tuning) -> list[Section]:
    """Two tables: methods that shorten the sequence, and linear layers that leave inputs out."""
    tokens = [(str(each.pruning), each) for each in found.whole_model if each.pruning is not None]
    inputs = [(sentence(methods(each.linears)), each) for each in found.whole_model if each.linears is not None]
    return [
        *_looked("What fewer tokens would lose", "method that shortens the sequence", tokens),
        *_looked("What linear layers that leave inputs out would lose", "inputs are left out by", inputs),
    ]


def _looked(title: str, column: str, of: Sequence[tuple[str, WholeModel]]) -> list[Section]:
    if not of:
        return []
    rows = [
        [name, "dense" if each.harm == 0 else "half of the harm", f"{each.losses[0]:+.2%}",
         "yes" if each.keeps else "no", "–" if each.speedup is None else f"{each.speedup:.2f}×"]
        for name, each in of
    ]  # fmt: skip
    columns = [column, "attention", "loss", "keeps the limit", "whole model"]
    note = "On the texts of the search. The strongest setting of each kind that keeps the limit was raced."
    return [Section(title, table(columns, rows), note)]


def _time(found: Tuning) -> Section:
    body = Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(
        Markup(plots.time(found)), plots.TIME_CAPTION
    )
    for costs in found.candidates:
        rows = [
            [label(name), f"{seconds * 1e3:.2f}"] for name, seconds in sorted(costs.items(), key=lambda each: each[1])
        ]
        body += Markup("<details><summary>each candidate's time</summary>{}</details>").format(
            Markup(table(["method", "ms a call"], rows))
        )
    return Section("Where time goes", body)


def _considered(found: Tuning) -> list[Section]:
    if not found.considered:
        return []
    body = Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(
        Markup(plots.frontier(found)), plots.FRONTIER_CAPTION
    )
    if found.gains:
        rows = [[f"{gain.max_loss:.1%}", f"{gain.speedup:.2f}×"] for gain in found.gains]
        body += Markup(table(["loss", "whole model, foretold"], rows))
    return [
        Section("What was considered", body, "What other limits would give is foretold from the search, not proved.")
    ]


def _run(found: Tuning) -> Section:
    body = Markup(facts(found.settings)) + Markup(facts(found.machine))
    return Section("The run", body, f"It took {found.seconds:.0f} s.")
