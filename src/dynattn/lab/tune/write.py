"""The file that a tuning leaves: ``model.dynattn.json``, which the integration with Transformers loads."""

from __future__ import annotations

from dynattn.integrations.transformers import Evidence, Tuned
from dynattn.lab.models import Pretrained
from dynattn.lab.tune.assignment import methods
from dynattn.lab.tune.results import Lost, Tuning
from dynattn.lab.tune.whole import setting


def tuned(found: Tuning, pretrained: Pretrained) -> Tuned:
    """What the file says.

    Args:
        found: a run that made the model faster.
        pretrained: the model.
    """
    length = found.time.length
    linears = {} if found.linears is None else {"prefill": setting(found.linears)}
    shortest = 1 if found.kind == "encoder" else length  # sentences took part there, too
    return Tuned.of(
        pretrained.model, methods(found.heads), dtype=found.dtype, phase=found.phase, lengths=(shortest, length),
        pruning=found.pruning, linears=linears, machine=found.machine, evidence=evidence(found),
    )  # fmt: skip


def evidence(found: Tuning) -> tuple[Evidence, ...]:
    """What was measured, as the file holds it."""
    speed = found.speed
    if speed is None:
        return ()
    raced = Evidence(
        what="speed-up of the whole model over SDPA", data=f"one forward of {found.time.length} tokens, interleaved",
        value=speed.speedup.median, low=speed.speedup.q1, high=speed.speedup.q3, items=speed.rounds,
        details={"interval": "quartiles over rounds", "dense_seconds": speed.dense.median,
                 "tuned_seconds": speed.tuned.median},
    )  # fmt: skip
    lost = () if found.exact else found.tries[-1].lost
    return (*map(evidence_of, lost), raced)


def evidence_of(lost: Lost) -> Evidence:
    """What was lost in an exam, as the file holds it."""
    return Evidence(
        what=f"relative loss of {lost.metric}", data=lost.data, value=lost.loss, high=lost.bound, level=lost.level,
        items=lost.items, details={"task": lost.task, "limit": lost.limit, "dense": lost.dense, "tuned": lost.tuned,
                                   "looks": lost.looks, "most_an_item_loses": lost.worst, "dense_guesses": lost.silent},
    )  # fmt: skip
