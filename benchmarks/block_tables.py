"""Write docs/dropping-blocks.md: its tables, and which choice to take, from the records that there are.

python benchmarks/block_tables.py

The records are those of :mod:`block_choices` and :mod:`block_encoders`, in ``benchmarks/results/blocks/``. What the
page says of them in its own words stands in ``CLAIMS``, with what a record must hold for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import block_encoders
import numpy as np
from block_choices import FACT, LENGTHS, differences, named, read
from held_out import KINDS
from marked import difference, markdown, rewritten

from dynattn.lab.machine import describe
from dynattn.lab.statistics import interval
from dynattn.methods.blocks import ESTIMATES

RESULTS = Path(__file__).parent / "results" / "blocks"
PAGE = Path(__file__).parent.parent / "docs" / "dropping-blocks.md"
START, END = "<!-- {}: written by benchmarks/block_tables.py -->", "<!-- end -->"
NOTHING = "Not recorded yet."
LOSS = 0.02  # nats a token, on each kind of text
FORGOTTEN = 0.1  # nats a token of the answer: who has lost a planted fact guesses, at the cost of one nat and more
SHARE = 0.01  # of the score of retrieval, and of saliency maps
RANKED_BY = "time-avx512.json"
SHOWN = 3  # methods that are named beside the best
CHOICES = {
    2048: "blockskip-3.0-in(blockmass-0.98-b64-similar)",
    4096: "blockskip-4.0-in(blockmass-0.98-b64-similar)",
    8192: "blockskip-5.0-in(blockmass-0.99-b64-similar)",
}
KEPT = 0.9985  # of the pairs, at least: what "next to nothing" means


class Measured(NamedTuple):
    """A method at a length, or on a model.

    Attributes:
        name: its short name.
        speedup: how many times as fast as SDPA it is.
        worst: where it loses most.
        loss: how much that is.
        fits: whether it stays within what may be lost.
    """

    name: str
    speedup: float
    worst: str
    loss: float
    fits: bool

    @property
    def text(self) -> str:
        """The method, its speed and its worst loss."""
        lost = "" if self.name == "dense" else f", {self.lost}"
        return f"`{self.name}` ({self.speedup:.2f}×{lost})"

    @property
    def lost(self) -> str:
        """Where it loses most, and how much."""
        return f"{self.worst} {self.loss:+.3f}"


def which() -> str:
    """The fastest choices that stay within what may be lost, by length and by model."""
    lines = [
        f"- **SmolLM2, {length} tokens**: {verdict(found)}{on_other_texts(length)}"
        f"{still_missing(found, named('quality', length))}"
        for length, found in ((length, decoder(length)) for length in LENGTHS)
    ]
    lines += [
        f"- **{title}**: {verdict(found)}{still_missing(found, block_encoders.METHODS)}"
        for title, found in ((title, encoder(model)) for model, title in block_encoders.MODELS.items())
    ]
    return "\n".join(lines)


def decoder(length: int, kind: str = "quality") -> list[Measured]:
    """What was both judged and timed at a length, by the texts of ``quality`` or those of ``again``."""
    record = read(RESULTS / f"{kind}-{length}.json")
    times = read(RESULTS / RANKED_BY).get("lengths", {}).get(str(length), {})
    found = []
    for name, scores in record.get("methods", {}).items():
        if name not in times or not scores.keys() >= {*KINDS, FACT} <= record["methods"]["dense"].keys():
            continue
        losses = {task: float(differences(record, name, task).mean()) for task in (*KINDS, FACT)}
        limits = {task: FORGOTTEN if task == FACT else LOSS for task in losses}
        worst = max(losses, key=lambda task: losses[task] / limits[task])
        fits = all(losses[task] <= limits[task] for task in losses)
        found.append(Measured(name, times[name]["speedup"], _title(worst), losses[worst], fits))
    return found


def on_other_texts(length: int) -> str:
    """What the methods that were tried again lost there, where some were, as the end of a line."""
    found = [one for one in sorted(decoder(length, "again"), key=lambda one: -one.speedup) if one.name != "dense"]
    said = [f"`{one.name}` {'stays within' if one.fits else 'exceeds'} the limits ({one.lost})" for one in found]
    return f" On other texts: {', '.join(said)}." if said else ""


def encoder(model: str) -> list[Measured]:
    """What was both judged and timed on a model."""
    record = read(RESULTS / f"{model}.json")
    times = record.get("time", {}).get("methods", {})
    (task, *_) = record.get("tasks", {"": ""})
    found = []
    for name, scores in record.get("methods", {}).items():
        if name not in times or task not in scores or task not in record["methods"].get("dense", {}):
            continue
        sign = -1 if record["higher_is_better"] else 1
        loss = sign * float(differences(record, name, task).mean())
        fits = loss <= SHARE * abs(float(np.mean(record["methods"]["dense"][task])))
        found.append(Measured(name, times[name]["speedup"], record["metric"], sign * loss, fits))
    return found


def verdict(found: Iterable[Measured]) -> str:
    """Which of them to take, in words."""
    ranked = sorted(found, key=lambda one: -one.speedup)
    if not ranked:
        return NOTHING[0].lower() + NOTHING[1:]
    fits = [one for one in ranked if one.fits]
    if not fits:
        return f"of {len(ranked)} measured, none stays within the limits."
    best, *others = fits
    text = f"take {best.text}."
    if best.name == "dense":
        text = f"none of those measured pays: {best.text} is the fastest that stays within the limits."
    if others:
        text += f" Next: {', '.join(one.text for one in others[:SHOWN])}."
    faster = [one for one in ranked if not one.fits and one.speedup > best.speedup]
    if faster:
        text += f" Faster, and beyond the limits: {', '.join(one.text for one in faster[:SHOWN])}."
    return text


def still_missing(found: list[Measured], names: Iterable[str]) -> str:
    """Those of the names that have yet to be measured, where some are, as the end of a line."""
    missing = [name for name in names if name not in {one.name for one in found}]
    return f" Not measured yet: {', '.join(f'`{name}`' for name in missing)}." if found and missing else ""


def estimates() -> str:
    """What every estimate is worth, by equal blocks and an equal budget."""
    masses, cost = read(RESULTS / "mass-2048.json").get("methods", {}), read(RESULTS / "quality-2048.json")
    times = read(RESULTS / RANKED_BY).get("lengths", {})
    names = {by: f"blocktopk-0.25-b64{'' if by == 'mean' else f'-{by}'}" for by in ESTIMATES}
    done = {by: masses[name] for by, name in names.items() if masses.get(name, {}).keys() >= {*KINDS}}
    held = {by: np.mean([of[kind][0] for kind in KINDS]) for by, of in done.items()}
    rows = []
    for by in sorted(held, key=lambda by: -held[by]):
        judged = cost.get("methods", {}).get(names[by], {}).keys() >= {*KINDS}
        lost = max(differences(cost, names[by], kind).mean() for kind in KINDS) if judged else None
        speeds = [times.get(str(length), {}).get(names[by]) for length in LENGTHS]
        cells = [f"{held[by]:.3f}", "–" if lost is None else f"{lost:+.3f}"]
        rows.append([f"`{by}`", *cells, *(f"{one['speedup']:.2f}×" if one else "–" for one in speeds)])
    heads = ["estimate", "mass kept", "nats lost at most", *(f"{length} tokens" for length in LENGTHS)]
    return markdown(heads, rows) if rows else NOTHING


def mass_table(tokens: int) -> str:
    """What every method keeps: mass, and in brackets the share of the pairs."""
    record = read(RESULTS / f"mass-{tokens}.json")
    rows = [
        [f"`{name}`", *(f"{kept:.3f} ({density:.1%})" for kept, density in (found[kind] for kind in KINDS))]
        for name, found in record.get("methods", {}).items()
        if found.keys() >= {*KINDS}
    ]
    return _table(["method", *KINDS], rows, record)


def quality_table(tokens: int) -> str:
    """Every method's cost in quality."""
    record = read(RESULTS / f"quality-{tokens}.json")
    made = record.get("tasks", {})
    dense = record.get("methods", {}).get("dense", {})
    rows = []
    for name, found in record.get("methods", {}).items():
        if not found.keys() >= made.keys() <= dense.keys():
            continue
        if name == "dense":
            cells = [f"{np.mean(dense[task]):.3f}" for task in made]
        else:
            cells = [difference(interval(differences(record, name, task))) for task in made]
        rows.append([f"`{name}`", *cells])
    return _table(["method", *map(_title, made)], rows, record)


def time_table(name: str) -> str:
    """Milliseconds, and how many times as fast as SDPA, by length."""
    record = read(RESULTS / f"{name}.json")
    lengths = record.get("lengths", {})
    names = list(dict.fromkeys(name for of in lengths.values() for name in of))
    rows = []
    for name in names:
        found = [of.get(name) for of in lengths.values()]
        rows.append([f"`{name}`", *(_time(one) for one in found)])
    heads = ["method", *(f"{length} tokens" for length in lengths)]
    sdpa = [f"{1e3 * np.median([one['sdpa'] for one in of.values()]):.0f} ms, 1.00×" for of in lengths.values()]
    return _table(heads, [["`sdpa`", *sdpa], *rows] if rows else [], record)


def encoder_table(model: str) -> str:
    """All figures of a model."""
    record = read(RESULTS / f"{model}.json")
    (task, *_) = record.get("tasks", {"": ""})
    times = record.get("time", {}).get("methods", {})
    rows = []
    for name, scores in record.get("methods", {}).items():
        if task not in scores or name not in record["kept"]:
            continue
        mass, density = record["kept"][name]
        lost = difference(interval(differences(record, name, task)))
        cells = [f"{np.mean(scores[task]):.3f}" if name == "dense" else lost]
        cells += [_time(times.get(name), 1)] if times else []
        rows.append([f"`{name}`", f"{mass:.3f} ({density:.1%})", *cells])
    heads = ["method", "kept", record.get("metric", ""), *(["time"] if times else [])]
    text = _table(heads, rows, record)
    return f"{record['tasks'][task]}.\n\n{text}" if rows else text


TIMES = ("time-avx512", "time-avx512-bfloat16", "time-avx2")
PARTS: dict[str, Callable[[], str]] = {
    "which": which,
    "estimates": estimates,
    "mass-2048": lambda: mass_table(2048),
    **{f"quality-{length}": (lambda length=length: quality_table(length)) for length in LENGTHS},
    **{name: (lambda name=name: time_table(name)) for name in TIMES},
    "minilm": lambda: encoder_table("minilm"),
    "dinov2": lambda: encoder_table("dinov2"),
}
"""What stands between marks of the page, by their names."""


def _half_and_four_fifths() -> bool:
    kept = read(RESULTS / "mass-2048.json")["methods"]
    forced, free = kept["blocktopk-0.25-b64"], kept["blocktopk-0.25-b64-w0-s0"]
    return all(forced[kind][0] >= 0.8 and free[kind][0] <= 0.6 for kind in KINDS)


def _next_to_nothing() -> bool:
    kept = read(RESULTS / "mass-2048.json")["methods"]
    proved = [of for name, of in kept.items() if name.startswith("blockbound-")]
    return bool(proved) and all(of[kind][1] >= KEPT for of in proved for kind in of)


def _longer_texts_ask_for_more() -> bool:
    """Where all lengths are recorded: each choice stays within the limits at its length, and not at twice that."""
    found = {length: {one.name: one.fits for one in decoder(length)} for length in LENGTHS}
    return not all(found.values()) or (
        all(found[length].get(CHOICES[length], False) for length in LENGTHS)
        and not any(found[longer].get(CHOICES[length], True) for length, longer in pairwise(LENGTHS))
    )


def _skips_gain() -> bool:
    times = read(RESULTS / "time-avx512-bfloat16.json").get("lengths", {})
    alone, inside = "blockmass-0.98-b64-similar", "blockskip-4.0-in(blockmass-0.98-b64-similar)"
    return all(of[inside]["seconds"] < of[alone]["seconds"] for of in times.values())


CLAIMS: dict[str, Callable[[], bool]] = {
    "keeps about half of the mass without them, and four fifths with them": _half_and_four_fifths,
    "On SmolLM2 they prove next to nothing": _next_to_nothing,
    "skips of a margin of 4 inside of blocks take less time than the blocks alone": _skips_gain,
    "The longer the text, the more has to be kept": _longer_texts_ask_for_more,
}
"""Sentences of the page that no table holds, and what the records must say for them to stand there."""


def page(text: str) -> str:
    """The page with everything in its place.

    Raises:
        ValueError: the page lacks a mark, or makes a claim that the records deny.
    """
    for claim, holds in CLAIMS.items():
        if claim in " ".join(text.split()) and not holds():
            raise ValueError(f"block_tables: the records must hold that {claim!r}: they deny it; mend the page")
    for name, made in PARTS.items():
        text = rewritten(text, START.format(name), made(), END, "block_tables")
    return text


def _table(heads: list[str], rows: list[list[str]], record: dict[str, Any]) -> str:
    begun = "".join(f" Begun on {describe(machine)}." for machine in record.get("earlier", ()))
    return f"{markdown(heads, rows)}\n\n{describe(record['machine'])}.{begun}" if rows else NOTHING


def _time(one: dict[str, Any] | None, digits: int = 0) -> str:
    return f"{one['seconds'] * 1e3:.{digits}f} ms, {one['speedup']:.2f}×" if one else "–"


def _title(task: str) -> str:
    return "a planted fact" if task == FACT else task


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
