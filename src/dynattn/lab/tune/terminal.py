"""A tuning in a terminal: what was gained and lost, which methods took part, what other limits would give."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from dynattn.lab.terminal import Grid, print_grid, say
from dynattn.lab.tune.assignment import shares
from dynattn.lab.tune.linears.words import grid, sentence
from dynattn.lab.tune.results import Lost, Rival, Tuning
from dynattn.lab.tune.whole import methods
from dynattn.lab.words import label

_MENTIONED = 1.01  # a speed-up that is worth a sentence


def show(found: Tuning, console: Console) -> None:
    """Print the verdict and the tables.

    Args:
        found: the run.
        console: where to print.
    """
    say(console, "")
    for line in sentences(found):
        say(console, line)
    if found.tries:
        print_grid(console, losses(found))
    if found.heads:
        rows = [[label(name), f"{share:.0%}"] for name, share in shares(found.heads).items()]
        print_grid(console, Grid("Methods", ["method", "of all heads"], rows))
    if found.linears is not None:
        print_grid(console, grid(methods(found.linears)))
    if found.gains:
        rows = [[f"{gain.max_loss:.1%}", f"{gain.speedup:.2f}×"] for gain in found.gains]
        print_grid(
            console, Grid("What other limits would give, foretold and not proved", ["loss", "whole model"], rows)
        )


def sentences(found: Tuning) -> list[str]:
    """What a run found, in words."""
    time = found.time
    said = [
        f"{found.model}, {found.phase} of {time.length} tokens, {found.dtype}: {found.reason}.",
        f"Attention takes {time.share:.0%} of the dense model's {time.forward:.2f} s, so no attention can make it more "
        f"than {time.bound:.2f} times as fast.",
    ]
    if found.speed is not None:
        speed = found.speed
        said.append(
            f"Whole model: {speed.dense.median:.2f} s with SDPA, {speed.tuned.median:.2f} s tuned; "
            f"{speed.speedup.median:.2f} times as fast (quartiles {speed.speedup.q1:.2f} to {speed.speedup.q3:.2f}, "
            f"{speed.rounds} rounds in alternation)."
        )
    if found.pruning is not None:
        said.append(f"Besides, {found.pruning} takes tokens out from layer to layer.")
    if found.linears is not None:
        said.append(f"Besides, inputs are left out anew for each token: {sentence(methods(found.linears))}.")
    own = _own_dense(found)
    if own is not None:
        said.append(
            f"Dense attention by this project's kernel alone would make it {own:.2f} times as fast, by the kernels' "
            "times, and lose nothing."
        )
    if found.rival is not None and found.speed is not None:
        said.append(against(found.rival, found.speed.speedup.median))
    return said


def against(other: Rival, speedup: float) -> str:
    """A tuned assignment beside the best single method for all heads, and which of the two is better, in words.

    Args:
        other: the method.
        speedup: of the whole model with the assignment, measured.
    """
    said = (
        f"The best single method for all heads, {label(other.method)}, makes the model {other.speedup:.2f} times as "
        f"fast and loses {other.loss:+.2%} on the data of the proof; the tuned one loses {other.tuned:+.2%}: "
    )
    faster, milder = speedup >= other.speedup, other.tuned <= other.loss
    if faster and milder:
        return said + "the tuned one is at least as fast and loses no more."
    below = (
        "and no bound is known" if other.bound is None else f"and the loss is only known to be below {other.bound:.2%}"
    )
    if faster:
        why = "it is faster and loses more, which the limit allows"
        return said + f"{why}." if other.proved else said + f"{why}; the single method is not proved, {below}."
    if not other.proved:
        less = "loses no less" if not milder else "loses less"
        return said + (
            f"the single method is faster, but that it keeps the limit of {other.limit:.2%} is not proved by these "
            f"items, {below}; the tuned one {less}. More minutes give more items."
        )
    if milder:
        return said + "the single method is faster and keeps the limit, too: the search did not foresee that."
    return said + "the single method is better on these items: what the search saw on its own data was not so here."


def _own_dense(found: Tuning) -> float | None:
    """The speed-up of the whole model, foretold, with dense attention by this project's kernel; None where PyTorch's
    is as fast."""
    if found.exact:  # it is what was found
        return None
    least = next((each for each in found.considered if each.name == "path" and each.harm == 0), None)
    return least.speedup if least is not None and least.speedup > _MENTIONED else None


def losses(found: Tuning) -> Grid:
    """Each exam of each try of the proof."""
    return losses_of([each.lost for each in found.tries])


def losses_of(tries: Sequence[Sequence[Lost]]) -> Grid:
    """Each exam of each try of a proof.

    Args:
        tries: what was lost in each.
    """
    columns = ["held-out task", "items", "dense", "tuned", "loss", "loss is below", "limit", "confidence", "reading"]
    rows = [
        [
            lost.task, str(lost.items), f"{lost.dense:.4f}", f"{lost.tuned:.4f}", f"{lost.loss:+.2%}",
            "–" if lost.bound is None else f"{lost.bound:.2%}", f"{lost.limit:.2%}", f"{lost.level:.0%}",
            Text(reading(lost), "green" if lost.holds else "red"),
        ]
        for each in tries
        for lost in each
    ]  # fmt: skip
    ends = [sum(map(len, tries[: i + 1])) - 1 for i in range(len(tries))]
    return Grid("Proof on data that took no part in the search", columns, rows, left=(8,), breaks=ends)


def reading(lost: Lost) -> str:
    """Whether an exam kept its limit, in a word or two."""
    if lost.silent:
        return "dense is at chance: says nothing"
    return "holds" if lost.holds else "not proved"
