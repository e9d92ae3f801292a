"""The page of a study: scores of dense and sparse attention before and after training, and how sure they are."""

from __future__ import annotations

from markupsafe import Markup

from dynattn.lab.figures import BASELINE
from dynattn.lab.finetune import plots
from dynattn.lab.machine import briefly
from dynattn.lab.page import Section, facts, render, table
from dynattn.lab.training.results import Arm, Contrast, Study
from dynattn.lab.words import NO_CONCLUSION, colored, interval, label, reading, signed


def trained(found: Study) -> str:
    """The word for the training."""
    return "fine-tuned" if any(arm.swapped or not arm.trained for arm in found.arms) else "trained"


def swapped_in(found: Study) -> bool:
    """Whether methods were put into the model that was trained with dense attention."""
    return any(arm.swapped for arm in found.arms)


def sentences(found: Study) -> list[str]:
    """The findings: each method, swapped in and trained, less trained dense attention, and how to read it."""
    lines = []
    for method in found.methods[1:]:
        states = [
            (f"put into the dense {trained(found)} model", found.of(method, trained=True, swapped=True)),
            (trained(found), found.of(method, trained=True)),
        ]
        lines += [_sentence(found, f"{label(method)}, {state}", arm.difference) for state, arm in states if arm]
    return lines + [f"{label(method)} is left out: {why}." for method, why in found.diverged.items()]


def how_sure(found: Study) -> str:
    """What the intervals take into account: seeds, items, or both."""
    if len(found.seeds) < 2:
        return (
            f"One seed and {len(found.items)} items: intervals are 95% bootstrap intervals over the items. They say "
            "nothing about other seeds; train with 3 or more for that."
        )
    return (
        f"{len(found.seeds)} seeds and {len(found.items)} items. Differences are paired by seed (the same order of the "
        "data) and by item. Intervals of trained models are 95% intervals over both, for other seeds and other items: "
        "a two-way table with random seeds and random items, Student's t with Satterthwaite's degrees of freedom. "
        "Without any training there is no seed: a bootstrap over the items. No correction is made for looking at "
        "several methods."
    )


def page(found: Study) -> str:
    """The study as one self-contained HTML page.

    Args:
        found: the study.

    Returns:
        The HTML document.
    """
    subtitle = f"{found.summary}. {briefly(found.machine, found.processes)}."
    sections = [_summary(found), _curves(found), _runs(found), _speed(found), _conditions(found)]
    return render(f"{found.name}: dense and sparse, {trained(found)} alike", subtitle, sections)


def _summary(found: Study) -> Section:
    rows = []
    for method in found.methods:
        before, after = found.of(method, trained=False), found.of(method, trained=True)
        between = _cells(found, found.of(method, trained=True, swapped=True)) or ["–"] * 2 * swapped_in(found)
        changes = [after.gain] * bool(before) + [after.recovered] * swapped_in(found) if after else []
        shown = [colored(reading(change, found.higher_is_better), interval(change)) for change in changes]
        rows.append([label(method), *_cells(found, before), *between, *_cells(found, after), *shown])
    untrained, less = found.of(BASELINE, trained=False) is not None, "less dense"
    columns = ["method", *(["without training", less] if untrained else [])]
    columns += [f"dense {trained(found)}, swapped in", f"{less} {trained(found)}"] if swapped_in(found) else []
    columns += [trained(found), f"{less} {trained(found)}"]
    columns += ["gain by training"] * untrained + ["gain over swapped in"] * swapped_in(found)
    lines = Markup("").join(Markup("<li>{}</li>").format(line) for line in sentences(found))
    body = Markup("<ul>{}</ul>\n<figure>{}<figcaption>{}</figcaption></figure>\n{}").format(
        lines, Markup(plots.standing(found)), plots.STANDING_CAPTION, Markup(table(columns, rows))
    )
    better = "higher" if found.higher_is_better else "lower"
    note = f"{found.metric}, {better} is better. {how_sure(found)}"
    if swapped_in(found):
        note += (
            f" Swapped in: the model that was {trained(found)} with dense attention, run with the method afterwards."
        )
    return Section("Summary", str(body), note)


def _cells(found: Study, arm: Arm | None) -> list[object]:
    if arm is None:
        return []
    word = reading(arm.difference, found.higher_is_better)
    return [f"{arm.score.mean:.4f}", colored(word, interval(arm.difference))]


def _curves(found: Study) -> Section:
    body = Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(
        Markup(plots.curves(found)), plots.CURVES_CAPTION
    )
    return Section("Learning curves", str(body))


def _runs(found: Study) -> Section:
    metric, between = found.metric.split(",")[0], swapped_in(found)
    columns = ["method", "seed", *(["swapped in"] * between), metric, "difference to dense, same seed", "last loss"]
    rows = []
    for method in found.methods:
        arm, swapped = found.of(method, trained=True), found.of(method, trained=True, swapped=True)
        if arm is None:
            continue
        differences = arm.difference.by_seed if arm.difference else [None] * len(arm.runs)
        without = [f"{run.score:.4f}" for run in swapped.runs] if swapped else ["–"] * len(arm.runs)
        for run, difference, score in zip(arm.runs, differences, without, strict=True):
            rows.append([
                label(method), run.seed, *([score] * between), f"{run.score:.4f}",
                "–" if difference is None else signed(difference), f"{run.losses[-1].value:.4f}",
            ])  # fmt: skip
    note = "Each run has a folder of its own, with its losses, step times and scores; a finished one is not repeated."
    return Section("Every run", table(columns, rows), note)


def _speed(found: Study) -> Section:
    dense = found.dense.seconds
    rows = []
    for method in found.methods:
        arm = found.of(method, trained=True)
        if arm is None or arm.seconds is None or dense is None:
            continue
        s = arm.seconds
        rows.append([
            label(method), f"{s.median:.3f}", f"{s.q1:.3f}–{s.q3:.3f}", f"{dense.median / s.median:.2f}×",
        ])  # fmt: skip
    note = (
        "Forward, backward and optimizer, over all steps of all seeds, evaluation left out. The runs follow one "
        "another, so what else the machine did meanwhile is in these times; dynattn bench compares attentions fairly."
    )
    return Section("Time of a step", table(["method", "median, s", "quartiles, s", "dense over it"], rows), note)


def _conditions(found: Study) -> Section:
    body = Markup("<h3>Training</h3>{}<h3>Model and data</h3>{}<h3>Machine and versions</h3>{}").format(
        Markup(facts(found.job | {"seeds": found.seeds, "processes": found.processes})),
        Markup(facts(found.identity)),
        Markup(facts(found.machine)),
    )
    note = (
        "The same numbers for every method; AdamW, linear warm-up and decay. Dropout inside attention is off for all "
        f"methods. The call that wrote this page took {found.seconds:.0f} s; what was finished before cost nothing."
    )
    return Section("Conditions", str(body), note)


def _sentence(found: Study, state: str, difference: Contrast | None) -> str:
    word = NO_CONCLUSION if found.at_chance else reading(difference, found.higher_is_better)
    line = f"{state}, less dense, {trained(found)}: {interval(difference)}"
    line += "" if word == "–" else f": {word}"
    loss = None if difference is None else _possible_loss(difference, found.higher_is_better)
    if word == "within noise" and loss is not None:
        line += f"; the interval leaves room for a loss of at most {loss:.4f}"
    return line + "."


def _possible_loss(found: Contrast, higher_is_better: bool) -> float | None:
    worst = found.low if higher_is_better else found.high
    return None if worst is None else abs(worst)
