"""The page of a comparison: what each method gains and what it costs, and how both were measured."""

from __future__ import annotations

from markupsafe import Markup

from dynattn.lab.compare import plots
from dynattn.lab.compare.results import Comparison, Timed
from dynattn.lab.figures import BASELINE, Quality, TaskResult
from dynattn.lab.machine import briefly
from dynattn.lab.page import Section, facts, render, table
from dynattn.lab.words import colored, interval, label, signed, verdict
from dynattn.methods import NM


def page(found: Comparison) -> str:
    """The comparison as one self-contained HTML page.

    Args:
        found: the comparison.

    Returns:
        The HTML document.
    """
    subtitle = f"{found.description}, in {found.dtype}. {briefly(found.machine)}."
    sections = [
        _summary(found), *(_quality(task) for task in found.tasks), _speed(found), _memory(found), _kept(found),
        _conditions(found),
    ]  # fmt: skip
    return render(f"Dynamic sparse attention in {found.model}", subtitle, [s for s in sections if s is not None])


def _summary(found: Comparison) -> Section:
    rows = []
    timings = {"attention": found.attention, "model, batch 1": found.latency}
    if found.throughput:
        timings[f"model, batch {found.throughput.batch}"] = found.throughput
    kept = {entry.method: entry for entry in found.kept}
    for method in found.methods:
        mass = kept.get(method)
        rows.append([
            label(method), *(_times(timed, method) for timed in timings.values()),
            *(_colored(task, task.of(method), interval(task.of(method).difference)) for task in found.tasks),
            f"{mass.density:.0%}" if mass else "100%",
        ])  # fmt: skip
    columns = [
        "method", *timings, *(f"{task.name}: {task.metric.split(',')[0]}" for task in found.tasks), "pairs kept",
    ]  # fmt: skip
    body = Markup("{}\n<figure>{}<figcaption>{}</figcaption></figure>\n{}").format(
        Markup(_sentences(found)), Markup(plots.tradeoff(found)), plots.TRADEOFF_CAPTION, Markup(table(columns, rows))
    )
    note = (
        "Speed-ups are over Transformers' sdpa (PyTorch's fused dense attention) in the same run; below 1 is slower. "
        "Changes of quality are paired by item, with 95% bootstrap intervals; an interval that holds zero is noise. "
        "No correction is made for looking at several methods."
    )
    return Section("Summary", body, note)


def _sentences(found: Comparison) -> str:
    share = next((s for s in found.shares if s.method == BASELINE), None)
    lines = []
    if share is not None:
        part = share.attention / share.forward
        bound = 1 / (1 - part)
        lines.append(
            f"Attention takes {part:.0%} of the dense model's time at {found.latency.length} tokens, so no attention, "
            f"however fast, can make this model more than {bound:.2f}× as fast at this length."
        )
    for method in found.methods:
        if method == "dense":
            continue
        words = [f"{task.name} {verdict(task, task.of(method))}" for task in found.tasks]
        lines.append(
            f"{label(method)}: attention {_times(found.attention, method, spread=False)}, whole model "
            f"{_times(found.latency, method, spread=False)}; {', '.join(words)}."
        )
    return str(Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(line) for line in lines)))


def _times(timed: Timed, method: str, spread: bool = True) -> str:
    row = timed.of(method)
    if row is None:
        return "–"
    text = f"{row.speedup.median:.2f}×"
    return f"{text} ({row.speedup.q1:.2f}–{row.speedup.q3:.2f})" if spread else text


def _colored(task: TaskResult, result: Quality, text: str) -> Markup:
    return colored(verdict(task, result), text)


def _quality(task: TaskResult) -> Section:
    agreement = any(result.agreement is not None for result in task.results)
    columns = ["method", "mean", "difference to dense, 95% interval", "reading"]
    columns += (["cosine to dense"] if agreement else []) + ["worst item"]
    rows = []
    for result in task.results:
        worst = "–" if result.worst is None else f"{result.worst.item} ({signed(result.worst.difference)})"
        row: list[object] = [
            label(result.method), f"{result.score:.4f}", _colored(task, result, interval(result.difference)),
            _colored(task, result, verdict(task, result)),
        ]  # fmt: skip
        row += [f"{result.agreement:.4f}"] if agreement and result.agreement is not None else []
        rows.append([*row, worst])
    better = "higher" if task.higher_is_better else "lower"
    body = Markup("<p>{} ({} is better). {}.</p>\n{}").format(
        task.title.rstrip("."), better, task.data, Markup(table(columns, rows))
    )
    note = (
        f"Differences are taken item by item ({len(task.items)} items) and their mean bootstrapped over the items, "
        "9999 resamples, percentiles. The worst item is the one that lost most against dense."
    )
    if agreement:
        note += " Cosine: of each item's output to the output under SDPA, mean over the items."
    return Section(f"Quality: {task.name}, {task.metric}", str(body), note)


def _speed(found: Comparison) -> Section:
    several, alone = found.throughput, f"Attention alone: {found.attention.calls} of the model's own calls, batch 1"
    parts = [(f"One item of {found.latency.length} tokens: latency", found.latency, several is None)]
    parts += [(f"{several.batch} items of {several.length} tokens: throughput", several, True)] if several else []
    parts += [(alone, found.attention, False)]
    body = Markup("")
    if found.shares:
        body += Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(
            Markup(plots.shares(found)), plots.SHARES_CAPTION
        )
    for title, timed, rate in parts:
        body += Markup("<h3>{}</h3>\n{}\n").format(title, Markup(_timed(timed, rate)))
    note = (
        "Every round runs each attention once, in an order drawn anew; speed-ups are medians of the ratios within a "
        "round, in brackets their quartiles. Attention alone: the queries, keys and values that the model itself "
        "gives its layers, through the same functions that the model calls. " + _disturbance(found)
    )
    return Section("Speed", str(body), note)


def _timed(timed: Timed, rate: bool) -> str:
    columns = ["method", "median, ms", "quartiles, ms", *(["items per s"] if rate else []), "speed-up", "rounds"]
    rows = []
    for row in timed.rows:
        s = row.seconds
        cells = [label(row.method), f"{s.median * 1e3:.2f}", f"{s.q1 * 1e3:.2f}–{s.q3 * 1e3:.2f}"]
        cells += [f"{timed.batch / s.median:.2f}"] if rate else []
        rows.append([*cells, _times(timed, row.method), row.samples])
    return table(columns, rows)


def _disturbance(found: Comparison) -> str:
    rows = [row for timed in (found.latency, found.throughput, found.attention) if timed for row in timed.rows]
    if any(row.disturbed is None for row in rows):
        return "This system does not tell whether other processes took the cores meanwhile."
    disturbed, samples = sum(row.disturbed or 0 for row in rows), sum(row.samples for row in rows)
    if disturbed > samples / 10:
        return (
            f"Other processes took the cores in {disturbed} of {samples} samples: repeat on a quiet machine before "
            "relying on these times."
        )
    return f"Other processes took the cores in {disturbed} of {samples} samples."


def _memory(found: Comparison) -> Section:
    if not found.memory:
        return Section("Peak memory", str(Markup("<p>{}</p>").format(found.memory_note)))
    dense = next(entry.bytes for entry in found.memory if entry.method == BASELINE)
    rows = [
        [label(entry.method), f"{entry.bytes / 2**20:.1f}", f"{entry.bytes / dense:.2f}×" if dense else "–"]
        for entry in found.memory
    ]
    body = Markup("<p>A forward of {} items of {} tokens.</p>\n{}").format(
        found.batch, found.latency.length, Markup(table(["method", "MiB", "of SDPA"], rows))
    )
    return Section("Peak memory", str(body), found.memory_note)


def _kept(found: Comparison) -> Section | None:
    if not found.kept:
        return None
    rows = []
    for entry in found.kept:
        heads = [value for layer in entry.mass for value in layer]
        method = NM.from_name(entry.method)
        rows.append([
            label(entry.method), f"{entry.density:.1%}", f"{sum(heads) / len(heads):.3f}", f"{min(heads):.3f}",
            f"{entry.lowest:.3f}", f"{method.n / method.m:.3f}" if method else "–",
        ])  # fmt: skip
    columns = ["method", "pairs kept", "mean kept mass", "lowest head", "lowest 1% of queries", "guaranteed"]
    body = Markup("<figure>{}<figcaption>{}</figcaption></figure>\n{}").format(
        Markup(plots.heat(found.kept)), plots.HEAT_CAPTION, Markup(table(columns, rows))
    )
    note = (
        "Kept mass is the share of the dense attention weight, per query, that stands on the pairs a method keeps: "
        "the output's error is at most (1 − kept mass) times the diameter of the values. N:M guarantees N/M on rows "
        "whose groups are full; a fixed or random mask of the same density keeps N/M on average. Measured on "
        "full-length items with the method in every layer."
    )
    return Section("What is kept", str(body), note)


def _conditions(found: Comparison) -> Section:
    body = Markup("<h3>Machine and versions</h3>{}<h3>Settings</h3>{}").format(
        Markup(facts(found.machine)), Markup(facts(found.settings))
    )
    return Section("Conditions", str(body), f"The whole comparison took {found.seconds:.0f} s.")
