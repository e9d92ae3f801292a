"""What the page and the terminal say of several sizes of a model: what is best at which budget, and whether a larger
sparse model beats a smaller dense one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from rich.console import Console

from dynattn.lab.figures import Interval
from dynattn.lab.frontier.cell import Phase
from dynattn.lab.frontier.isoflops import COSTS, Duel, Ground, Setting, Step, best, duels, envelope, grounds
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.page import COLORS, Section, new_figure, render, svg, table
from dynattn.lab.terminal import Grid, print_grid, say
from dynattn.lab.words import interval, reading

_PHASES: dict[Phase, str] = {"prefill": "one input read at once", "decode": "one step of decoding"}
_UNITS = {"FLOPs": "FLOPs", "bytes": "B"}
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_GREY = "#8a8f98"
_LITTLE = (
    "A cost is that of the whole model, linear layers and attention. No correction is made for looking at many "
    "settings: the best of many looks better than it is. What holds for these models and lengths need not hold for "
    "others: a share of the cost that attention does not have cannot be spared by any sparsity."
)


def compared(records: Sequence[Frontier]) -> list[Ground]:
    """The exams that several models took, by phase and by what a budget is of.

    Args:
        records: of at least two models.

    Raises:
        ValueError: as :func:`dynattn.lab.frontier.isoflops.grounds`, or no exam was taken by two models.
    """
    found = [ground for phase in _PHASES for cost in COSTS for ground in grounds(records, phase, cost)]
    if not found:
        raise ValueError(
            "isoflops: an exam must have been taken by two models with dense attention, and be more than guesses for "
            "one of them: none was; run dynattn frontier for each model with the same tasks, lengths and items"
        )
    return found


def titled(found: Sequence[Ground]) -> dict[str, str]:
    """Models by the names that people call them: a folder's last part, where that tells models apart."""
    models = sorted({setting.model for ground in found for setting in ground.settings})
    short = {model: Path(model).name or model for model in models}
    return short if len(set(short.values())) == len(models) else {model: model for model in models}


def amount(cost: float, of: str) -> str:
    """A cost in words: ``1.23 GFLOPs``, ``45.6 MB``.

    Args:
        cost: the cost.
        of: a key of :data:`~dynattn.lab.frontier.isoflops.COSTS`.
    """
    unit, prefix = next(((unit, prefix) for unit, prefix in _PREFIXES if cost >= unit), (1.0, ""))
    return f"{cost / unit:.3g} {prefix}{_UNITS[of]}"


def envelope_grid(ground: Ground, steps: Sequence[Step], names: dict[str, str]) -> Grid:
    """What is best from which budget on: a row a step.

    Args:
        ground: the exam.
        steps: its :func:`~dynattn.lab.frontier.isoflops.envelope`.
        names: what :func:`titled` gave.
    """
    rows = [
        [
            amount(step.setting.cost, ground.cost), _called(step.setting, names), _kept(step.setting),
            f"{step.setting.score:.4f}", "–" if step.against is None else _called(step.against, names),
            *_told(step.difference, ground),
        ]
        for step in steps
    ]  # fmt: skip
    columns = ["from", "best", "kept", "score", "best dense one\nthat costs no more", "difference [95%]", "so it is"]
    return Grid(f"{_title(ground)}: what to take at which budget", columns, rows, keys=2, left=(4, 6))


def duel_grid(found: Sequence[Ground], names: dict[str, str]) -> Grid:
    """Larger and sparse against smaller and dense, at the smaller one's cost: a row for each two models and exam.

    Args:
        found: exams of one phase and one kind of cost.
        names: what :func:`titled` gave.
    """
    rows = [
        [
            _exam(ground), _called(duel.small, names), _called(duel.large, names), f"{_over(duel):.0%}",
            _kept(duel.large), f"{duel.small.score:.4f}", f"{duel.large.score:.4f}", *_beats(duel.difference, ground),
        ]
        for ground in found
        for duel in duels(ground)
    ]  # fmt: skip
    columns = [
        "exam", "smaller, dense", "larger, sparse", "cost over\nthe smaller's", "kept", "smaller's\nscore",
        "larger's\nscore", "difference [95%]", "the larger is",
    ]  # fmt: skip
    cost, phase = found[0].cost, found[0].sheet.exam.phase
    return Grid(f"{phase}: larger and sparse against smaller and dense, by {cost}", columns, rows, left=(1, 2, 8))


def answers(ground: Ground, names: dict[str, str]) -> list[str]:
    """What the cost of each dense model buys at best, in a sentence each.

    Args:
        ground: the exam.
        names: what :func:`titled` gave.
    """
    told = []
    for dense in ground.dense:
        found = best(ground, dense.cost)
        if found is not None:
            itself = "nothing better" if found == dense else f"{_called(found, names)} ({found.score:.4f})"
            told.append(
                f"{_title(ground)}: {amount(dense.cost, ground.cost)}, the cost of {_called(dense, names)} "
                f"({dense.score:.4f}), buy at best {itself}."
            )
    return told


def show(found: Sequence[Ground], console: Console) -> None:
    """Print both tables of each phase and cost, and the answers.

    Args:
        found: what :func:`compared` gave.
        console: where to print.
    """
    names = titled(found)
    for alike in _alike(found):
        for ground in alike:
            print_grid(console, envelope_grid(ground, envelope(ground), names))
        print_grid(console, duel_grid(alike, names))
        for line in (line for ground in alike for line in answers(ground, names)):
            say(console, line)


def page(found: Sequence[Ground], records: Sequence[Frontier]) -> str:
    """The comparison as one self-contained HTML page.

    Args:
        found: what :func:`compared` gave.
        records: those of which it was made.
    """
    names = titled(found)
    sections = [section for alike in _alike(found) for section in _sections(alike, names)]
    described = "; ".join(f"{record.model}: {record.description}, in {record.dtype}" for record in records)
    return render(f"Sizes and sparsity: {', '.join(names.values())}", described, sections)


def _sections(alike: Sequence[Ground], names: dict[str, str]) -> list[Section]:
    cost, phase = alike[0].cost, alike[0].sheet.exam.phase
    steps = [envelope(ground) for ground in alike]
    lines = Markup("").join(
        Markup("<li>{}</li>").format(line) for ground in alike for line in answers(ground, names)
    )  # fmt: skip
    note = (
        f"The {cost} of {_PHASES[phase]}. Each line is a model, from its sparsest setting to dense attention (the "
        "star); the grey line is the envelope. " + _LITTLE
    )
    body = _curves(alike, steps, names) + str(Markup("<ul>{}</ul>").format(lines))
    own = (envelope_grid(ground, its, names) for ground, its in zip(alike, steps, strict=True))
    grids = [duel_grid(alike, names), *own]
    tables = [Section(grid.title, table([one.replace("\n", " ") for one in grid.columns], grid.rows)) for grid in grids]
    return [Section(f"{phase.capitalize()}: which size and sparsity, by {cost}", body, note), *tables]


def _curves(alike: Sequence[Ground], steps: Sequence[Sequence[Step]], names: dict[str, str]) -> str:
    """Score against cost, a panel an exam."""
    columns = min(2, len(alike))
    rows = -(-len(alike) // columns)
    figure, axes = new_figure(9.0, 0.6 + 3.0 * rows, rows, columns)
    panels = list(axes.flat) if columns > 1 or rows > 1 else [axes]
    for spare in panels[len(alike) :]:
        spare.set_axis_off()
    for ax, ground, its in zip(panels, alike, steps, strict=False):
        outer = [step.setting for step in its]
        ax.step([one.cost for one in outer], [one.score for one in outer], where="post", color=_GREY, linewidth=3,
                alpha=0.4)  # fmt: skip
        for model, color in zip(names, COLORS * len(names), strict=False):
            own = [one for one in ground.settings if one.model == model]
            ax.plot([one.cost for one in own], [one.score for one in own], ".-", color=color, label=names[model])
            for one in (one for one in own if one.dense):
                ax.plot(one.cost, one.score, "*", color=color, markersize=12)
        ax.set_xscale("log")
        ax.set_title(_exam(ground))
        ax.set_xlabel(ground.cost)
        ax.set_ylabel(ground.sheet.metric)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return svg(figure, f"score against {alike[0].cost}, a line a model")


def _alike(found: Sequence[Ground]) -> list[list[Ground]]:
    """The exams of each phase and kind of cost."""
    grouped: dict[tuple[str, str], list[Ground]] = {}
    for ground in found:
        grouped.setdefault((ground.sheet.exam.phase, ground.cost), []).append(ground)
    return list(grouped.values())


def _exam(ground: Ground) -> str:
    return ground.sheet.exam.title


def _title(ground: Ground) -> str:
    return f"{_exam(ground)}, {ground.sheet.exam.phase}"


def _called(setting: Setting, names: dict[str, str]) -> str:
    return setting._replace(model=names[setting.model]).label


def _kept(setting: Setting) -> str:
    return "–" if setting.kept is None else f"{setting.kept:.0%}"


def _over(duel: Duel) -> float:
    return duel.large.cost / duel.small.cost


def _beats(difference: Interval | None, ground: Ground) -> list[str]:
    return ["–", "dearer however sparse"] if difference is None else _told(difference, ground)


def _told(difference: Interval | None, ground: Ground) -> list[str]:
    return [interval(difference), reading(difference, ground.sheet.higher_is_better)]
