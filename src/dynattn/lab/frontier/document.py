"""The page of a sweep: which method to take for the model, the frontier in plots, and every figure behind them."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from dynattn.lab.figures import Interval
from dynattn.lab.frontier import plots
from dynattn.lab.frontier.choice import COSTS, LEAST, picks, undominated
from dynattn.lab.frontier.methods import is_baseline
from dynattn.lab.frontier.results import Frontier, Sheet
from dynattn.lab.frontier.sections import alarm, at_chance, farthest
from dynattn.lab.frontier.summary import (
    Contender,
    ExamResult,
    contenders,
    exams,
    phases,
    timing_machine,
    titles,
)  # fmt: skip
from dynattn.lab.page import Section, facts, render, table
from dynattn.lab.words import NO_CONCLUSION, colored

_COST_TITLES = {"time": "fastest", "FLOPs": "fewest FLOPs", "pairs": "fewest pairs"}
_PHASES = {
    "prefill": "one forward over the whole input",
    "decode": "the answer written token by token, with a cache",
}


def page(found: Frontier) -> str:
    """The sweep as one self-contained HTML page.

    Args:
        found: the record.

    Returns:
        The HTML document; its script is inside, and it refers to nothing else.

    Raises:
        ValueError: no method was measured beside dense attention.
    """
    sections: list[Section] = []
    for phase in phases(found):
        chosen = contenders(found, phase)
        if chosen:
            several = f", {phase}" if len(phases(found)) > 1 else ""
            sections += _of_phase(found, chosen, exams(found, phase), several, first=not sections)
            sections += farthest(found, phase, several)
            sections += at_chance(found, phase, several)
    if not sections:
        raise ValueError(f"page: methods must be measured beside dense attention: none is; {_first_failure(found)}")
    failures = [_failures(found)] if found.failures else []
    return render(
        f"Sparse attention in {found.model}: the frontier",
        f"{found.description}, in {found.dtype}. {len(found.grades)} measurements of quality, {len(found.times)} of "
        "time.",
        [*alarm(found), *sections, *failures, _conditions(found)],
    )


def share(found: Interval) -> str:
    """A share with its bounds, in percent: ``97.1% [95.0, 99.2]``."""
    if found.low is None or found.high is None:
        return f"{found.mean:.1%} (too few items for an interval)"
    return f"{found.mean:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def judged(found: Interval) -> str:
    """``worse``, ``better`` or ``within noise``: where a share's interval lies beside 1."""
    if found.low is None or found.high is None or found.low <= 1 <= found.high:
        return "within noise"
    return "worse" if found.high < 1 else "better"


def against_baselines(contender: Contender) -> str:
    """In a word or two, whether it beats random and fixed choices."""
    if is_baseline(contender.entry.family):
        return "baseline"
    beats = contender.beats_baselines
    if beats is None:
        return "–"
    if beats:
        return "better"
    beaten = [family for family, lead in contender.leads.items() if lead.high is not None and lead.high < 0]
    if beaten:
        return f"worse than {' and '.join(beaten)}"
    unclear = [family for family, lead in contender.leads.items() if lead.low is None or lead.low <= 0]
    return f"unclear: {', '.join(unclear)}"


def sentences(chosen: Sequence[Contender]) -> list[str]:
    """The choice in words, one sentence a bound; and which methods cannot be compared."""
    if all(result.at_chance for contender in chosen for result in contender.results):
        return [f"In every exam {NO_CONCLUSION} about any method."]
    lines = []
    for least in LEAST:
        found = [pick for pick in picks(chosen) if pick.least == least]
        named = [
            f"{_COST_TITLES[pick.cost]} {pick.contender.label} ({COSTS[pick.cost](pick.contender):.0%} of dense)"
            for pick in found
            if pick.contender is not None
        ]
        none = "no method is sure to, as far as these items can tell; more --items tell more"
        if any(pick.enough for pick in found):
            none = "nothing that is sure to costs less than dense attention"
        lines.append(f"To retain at least {least:.0%} of the quality in every exam: {'; '.join(named) or none}.")
    return [*lines, *_incomplete(chosen)]


def _incomplete(chosen: Sequence[Contender]) -> list[str]:
    """The contenders that did not take every exam, as in merged sweeps of other lengths or items."""
    asked = {result.sheet.exam.key for contender in chosen for result in contender.results}
    short = [f"{c.label} ({len(c.results)} of {len(asked)})" for c in chosen if len(c.results) < len(asked)]
    if not short:
        return []
    return [
        "Not measured in every exam, so that worst and mean are not those of the same exams, and left out of this "
        f"choice where others took more: {', '.join(short)}."
    ]


def _of_phase(
    found: Frontier, chosen: Sequence[Contender], sheets: Sequence[Sheet], several: str, first: bool
) -> list[Section]:
    return [
        _choice(chosen, sheets, several, first),
        _table(chosen, several),
        _by_exam(chosen, sheets, several),
        *([_times(chosen, found, several)] if any(contender.time for contender in chosen) else []),
    ]


def _choice(chosen: Sequence[Contender], sheets: Sequence[Sheet], several: str, first: bool) -> Section:
    phase = sheets[0].exam.phase
    lines = Markup("").join(Markup("<li>{}</li>").format(line) for line in [*sentences(chosen), *_failing(chosen)])
    caption = (
        "Up and to the left is better. Bars are 95% intervals, paired by item; the dashed line is dense attention. "
        "Click a name to hide it, twice to see it alone; point at a mark for its figures; drag to enlarge."
    )
    body = Markup("{}<ul>{}</ul>{}<p class='note'>{}</p>").format(
        Markup(plots.STYLE if first else ""), lines, Markup(plots.overview(chosen, first)), caption
    )
    note = (
        f"{phase.capitalize()}: {_PHASES[phase]}. {len(sheets)} exams: {', '.join(titles(sheets).values())}. Retained: "
        "the score over dense attention's, or for likelihoods exp(dense NLL − NLL). FLOPs are those of the whole "
        "model by the methods' definitions; time is of the whole model, over dense attention (PyTorch's fused one) in "
        "the same run, and above 100% where a method is not fast as it is built here. No correction is made for "
        "looking at several methods."
    )
    return Section(f"Which method{several}", str(body), note)


def _failing(chosen: Sequence[Contender]) -> list[str]:
    """The contenders that do not beat looking at nothing: some certainly, others as far as these items can tell."""
    failing = [c for c in chosen if c.beats_baselines is False]
    worse = [c.label for c in failing if against_baselines(c).startswith("worse")]
    unclear = [c.label for c in failing if c.label not in worse]
    lines = [f"Worse than looking at nothing, at the same budget: {', '.join(worse)}."] if worse else []
    if unclear:
        lines.append(f"Not better than looking at nothing, as far as these items can tell: {', '.join(unclear)}.")
    return lines


def _table(chosen: Sequence[Contender], several: str) -> Section:
    frontier = {name: {c.label for c in undominated(chosen, cost)} for name, cost in COSTS.items()}
    compared = any(contender.leads for contender in chosen)
    columns = ["method", "pairs (mass)", "FLOPs (attention)", "time", "worst exam", "mean"]
    columns += [*(["against baselines"] if compared else []), "on the frontier of"]
    rows = []
    for contender in sorted(chosen, key=lambda c: -c.worst.retained.mean):
        worst, mean = contender.worst.retained, contender.retained
        on = [name for name, labels in frontier.items() if contender.label in labels]
        rows.append([
            _named(contender), _pairs(contender),
            f"{_percent(contender.flops)} ({_percent(contender.attention)})", _percent(contender.time),
            colored(judged(worst), share(worst)) + _below(contender.worst.sheet.exam.title),
            colored(judged(mean), share(mean)),
            *([_standing(contender)] if compared else []), ", ".join(on) or "–",
        ])  # fmt: skip
    note = (
        "Shares of dense attention's pairs (in brackets the softmax weight on them), FLOPs of the model (of attention "
        "alone), and time. Sorted by the worst exam. Colours: the interval leaves 100% out. The mean's bounds are the "
        "means of the exams' bounds, which hold even if all exams err together. Against baselines: whether more is "
        "retained, beyond noise, than by random and by evenly spaced keys of the same budget (by random tokens, for "
        "methods that take tokens away, and by random weights, for those that set weights to 0). On the frontier: no "
        "other method is at once cheaper and better in its worst exam."
    )
    return Section(f"Every method{several}", table(columns, rows), note)


def _by_exam(chosen: Sequence[Contender], sheets: Sequence[Sheet], several: str) -> Section:
    named = titles(sheets)
    columns = ["method", *named.values()]
    rows = []
    for contender in chosen:
        results = {result.sheet.exam.key: result for result in contender.results}
        rows.append([contender.label, *(_cell(results.get(key)) for key in named)])
    lines = Markup("")
    for sheet in sheets:
        better = "higher" if sheet.higher_is_better else "lower"
        lines += Markup("<li><b>{}</b>: {} {}, {} is better. {}.</li>").format(
            named[sheet.exam.key], sheet.title, sheet.metric, better, sheet.data
        )
    body = Markup("{}{}<details><summary>What the exams ask</summary><ul>{}</ul></details>").format(
        Markup(plots.by_exam(chosen, named)), Markup(table(columns, rows)), lines
    )
    return Section(f"Exam by exam{several}", str(body), "In each cell: the mean score, and what is retained.")


def _times(chosen: Sequence[Contender], found: Frontier, several: str) -> Section:
    columns = ["method", "tokens", "ms", "dense, ms", "speed-up (quartiles)", "rounds", "disturbed"]
    labels = {result.grade.cell.entry.name: c.label for c in chosen for result in c.results}
    phase = chosen[0].results[0].sheet.exam.phase
    machine = timing_machine(found)
    rows = []
    for time in found.times.values():
        if time.race.machine != machine or time.race.exam.phase != phase:
            continue
        s = time.speedup
        rows.append([
            labels.get(time.race.entry.name, time.race.entry.name), time.length, f"{time.seconds.median * 1e3:.1f}",
            f"{time.dense.median * 1e3:.1f}", f"{s.median:.2f}× ({s.q1:.2f}–{s.q3:.2f})", time.samples,
            "–" if time.disturbed is None else time.disturbed,
        ])  # fmt: skip
    others = len({time.race.machine for time in found.times.values()}) - 1
    note = (
        "Each method alone in alternation with dense attention (PyTorch's scaled_dot_product_attention), after all "
        "scores were taken and nothing else of this command ran; medians, and quartiles of the ratios within a round. "
        "Disturbed: rounds in which other processes took the cores."
    )
    if others:
        note += f" Of {others + 1} machines that timed, the one that timed most is shown; the record holds all."
    return Section(f"Time{several}", table(columns, rows), note)


def _failures(found: Frontier) -> Section:
    rows = [[failure.entry.name, failure.exam.title, failure.reason] for failure in found.failures.values()]
    note = "Tried again when the command is given again."
    return Section("Not measured", table(["method", "exam", "why"], rows), note)


def _conditions(found: Frontier) -> Section:
    parts = [
        Markup("<h3>{}{}</h3>{}").format(
            "Machine and versions", " (timed)" if key == timing_machine(found) else "", Markup(facts(machine))
        )
        for key, machine in found.machines.items()
    ]
    note = f"Measuring took {found.seconds / 60:.1f} minutes, all runs together. Protocol after arXiv:2504.17768."
    return Section("Conditions", str(Markup("").join(parts)), note)


def _cell(result: ExamResult | None) -> str | Markup:
    if result is None:
        return "–"
    mean = sum(result.grade.scores) / len(result.grade.scores)
    return colored(judged(result.retained), f"{mean:.3f}, {result.retained.mean:.1%}")


def _standing(contender: Contender) -> Markup:
    verdict = against_baselines(contender)
    return colored(verdict.partition(" ")[0], verdict)


def _named(contender: Contender) -> Markup:
    """The label over the short names that it stands for."""
    names = Markup("<br>").join(Markup("<code>{}</code>").format(name) for name in contender.names)
    return Markup("{}").format(contender.label) + _below(names)


def _below(text: str) -> Markup:
    return Markup("<br><span class='soft'>{}</span>").format(text)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _pairs(contender: Contender) -> str:
    """Kept pairs, and the mass on them."""
    mass = "" if contender.kept_mass is None else f" ({contender.kept_mass:.2f})"
    return _percent(contender.density) + mass


def _first_failure(found: Frontier) -> str:
    return next((failure.reason for failure in found.failures.values()), "the record is empty")
