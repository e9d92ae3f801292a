"""Before the work: the model, the length, the plan and the data, and everything that can be refused."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynattn.integrations.transformers import register
from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Kind, Pretrained, context, facts
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.tasks.texts import Text, read, wikipedia
from dynattn.lab.tune import pieces, shorten
from dynattn.lab.tune.clock import Clock
from dynattn.lab.tune.layers import Clocked, clocked, places
from dynattn.lab.tune.linears.clock import Seconds
from dynattn.lab.tune.linears.prefill import costs
from dynattn.lab.tune.own import found
from dynattn.lab.tune.parts import Exams, Parts, forwards, parts
from dynattn.lab.tune.plan import LEAST, Counts, Plan, least_seconds, plan
from dynattn.lab.tune.settings import Settings, share_of_prefill
from dynattn.lab.tune.store import Store

_LENGTHS = (4096, 3072, 2048, 1536, 1024, 512, 256)
"""The lengths for a decoder where none is asked for: the longest that minutes, model and texts allow is taken."""

_ENCODER_LENGTH = 512
_READERS: tuple[Kind, ...] = ("encoder", "decoder")
_FEW = 64  # how many tokens a forward has that shows how the model is built
_PLENTY = 20  # entries of a proof with which a small loss is mostly told from the limit
_PROBE = 1024  # how many tokens the forward has from which the time of longer ones is predicted


@dataclass(frozen=True)
class Begun:
    """What a run works with.

    Attributes:
        pretrained: the model.
        length: tokens.
        plan: what is done in the time.
        parts: the exams.
        entry: seconds that the dense model takes for an entry of an exam.
        asked: the length with which the exams were made; None for inputs of one size.
        linears: what linear layers take, dense and where they leave inputs out; empty where that makes none faster.
        few: why no claim can be made with the data that there is, in words; None where one can.
    """

    pretrained: Pretrained
    length: int
    plan: Plan
    parts: Parts
    entry: float
    asked: int | None
    linears: Seconds
    few: str | None = None


def given(settings: Settings) -> tuple[Text, ...] | None:
    """The user's texts, or None. What cannot be done is refused here, before the weights are read.

    Raises:
        ValueError: there is no text, no such task or no such model, or they do not go together.
    """
    if settings.task is not None:
        if settings.texts is not None:
            raise ValueError("tune: --task brings its own data: leave --texts out")
        found(settings.task)
    kind = facts(settings.model).kind
    if kind not in _READERS:
        for option, value, why in (
            ("--length", settings.length, "inputs have one size"),
            ("--texts", settings.texts, "inputs are no texts"),
        ):
            if value is not None:
                raise ValueError(f"tune: {settings.model} is a {kind} model, whose {why}; leave {option} out")
    if settings.texts is None:
        return None
    return tuple({text.body: text for text in read(settings.texts)}.values())  # copies of a text tell no more than one


def begin(
    settings: Settings, texts: tuple[Text, ...] | None, pretrained: Pretrained, store: Store, clock: Clock
) -> Begun:
    """Make sure that the work can be done in the time, with the data that there is.

    Args:
        settings: what was asked for.
        texts: the user's own.
        pretrained: the model.
        store: keeps the plan: a run that goes on has the parts that it began with.
        clock: tells the time that is left.

    Raises:
        ValueError: the model, a length, the texts or the minutes do not suffice; the text says which, and a remedy.
    """
    register()
    lengths = _lengths(settings, pretrained)

    def find() -> Any:
        if lengths is None or settings.task is not None:
            return _planned(settings, texts, pretrained, settings.length, clock)
        if pretrained.kind == "encoder":
            return _planned(settings, texts, pretrained, lengths[0], clock)
        return _longest(settings, texts, pretrained, lengths, clock)

    length, its, entry, linears = store.once("plan", find)
    chosen = Plan(**{**its, "counts": Counts(*its["counts"])})
    made = parts(pretrained, texts, length, chosen.counts, settings.task)
    found = made.search[0].data.length if length is None else length
    few = _few(settings, made.proofs[0])
    if few is not None and (pretrained.kind != "speech" or settings.task is not None):
        raise ValueError(f"tune: {few}, allow more --minutes, or a larger --max-loss")
    return Begun(pretrained, found, chosen, made, entry, length, linears, few)


def _lengths(settings: Settings, pretrained: Pretrained) -> Sequence[int] | None:
    """The lengths to consider, the longest first; None for models whose inputs have one size.

    Raises:
        ValueError: the model does not take the length that was asked for.
    """
    if pretrained.kind not in _READERS:
        return None
    most = context(pretrained)
    if settings.length is not None:
        if most is not None and settings.length > most:
            raise ValueError(
                f"tune: length must be within the model's context: got {settings.length}, {pretrained.name} takes "
                f"{most}; pass --length {most} or less"
            )
        return (settings.length,)
    if pretrained.kind == "encoder":
        return (min(_ENCODER_LENGTH, most or _ENCODER_LENGTH),)
    return [length for length in _LENGTHS if most is None or length <= most] or [most or _LENGTHS[-1]]


def _longest(
    settings: Settings, texts: tuple[Text, ...] | None, pretrained: Pretrained, lengths: Sequence[int], clock: Clock
) -> Any:
    """A decoder at the longest of the lengths for which there are texts and time: the length, its plan, an entry's
    seconds, and what linear layers take. A shorter one is taken where the longest would leave the proof few items."""
    own = pieces.shuffled(wikipedia() if texts is None else texts)
    least = LEAST.search + LEAST.prove
    enough = [length for length in lengths if len(pieces.cut(pretrained, own, length, least)) == least]
    if not enough:  # refused in words
        parts(pretrained, texts, lengths[-1], LEAST, None)
    probe = min(_PROBE, enough[0])
    ids = pieces.cut(pretrained, own, probe, 1)[0].ids.to(pretrained.model.device)
    inputs = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
    places(pretrained, inputs | {"input_ids": ids[:, :_FEW]})  # refuses, and warms up
    seen = _sooner(pretrained, inputs)
    inside = sum(seen.modules.values())
    least_time = math.inf
    scarce: list[Any] | None = None
    for length in enough:
        times = length / probe
        attention = inside * times**2
        forward = (seen.forward - inside) * times + attention
        entry = {"entry": forward, "share": attention / forward, "second": True}
        its, linears = _plan(pretrained, inputs, clock, 0, entry)
        if its is not None:
            found = [length, asdict(its), forward, linears]
            if its.counts.prove >= _PLENTY:
                return found
            scarce = scarce or found
        least_time = least_seconds(**entry)
    if scarce is not None:
        return scarce
    raise _too_little(settings, clock, least_time, enough[-1])


def _planned(
    settings: Settings, texts: tuple[Text, ...] | None, pretrained: Pretrained, length: int | None, clock: Clock
) -> Any:
    """The length, where one is given, the plan for it, an entry's seconds, and what linear layers take."""
    few = parts(pretrained, texts, length, LEAST, settings.task)
    exam, second = few.search[0], len(few.search) > 1
    inputs = exam.inputs(0)
    places(pretrained, inputs)
    seen = _sooner(pretrained, inputs)
    if settings.task is None:
        forward = seen.forward * forwards(pretrained.kind)
    else:  # a score can take any number of forwards
        start = time.perf_counter()
        exam.portion(0, 1).outcome(pretrained, BASELINE, lambda: None)
        forward = time.perf_counter() - start
    families = len(shorten.families(pretrained.model, exam.data.length))
    entry = {"entry": forward, "share": seen.share, "second": second, "forward": seen.forward}
    its, linears = _plan(pretrained, exam.inputs_on(pretrained.model.device), clock, families, entry)
    if its is not None:
        return [length, asdict(its), forward, linears]
    least = least_seconds(**entry, shorter=shorten.measurements(families))
    raise _too_little(settings, clock, least, exam.data.length)


def _plan(
    pretrained: Pretrained, inputs: Inputs, clock: Clock, families: int, entry: Mapping[str, Any]
) -> tuple[Plan | None, Seconds]:
    """The plan, and what linear layers take. They are timed where minutes suffice for a stage of their own, and have
    none where they do not: a longer text is worth more.

    Args:
        pretrained, inputs, clock: the model, a forward's inputs, and the time that is left.
        families: of methods that shorten the sequence.
        entry: what :func:`plan` takes besides.
    """
    if plan(clock.left, **entry, shorter=shorten.measurements(families + 1)) is not None:
        linears = costs(pretrained, inputs)
        its = plan(clock.left, **entry, shorter=shorten.measurements(families + bool(linears)))
        if its is not None:
            return its, linears
    return plan(clock.left, **entry, shorter=shorten.measurements(families)), {}


def _sooner(pretrained: Pretrained, inputs: Inputs) -> Clocked:
    """The faster of two forwards: one alone is ten times as slow where something else just runs."""
    return min((clocked(pretrained, inputs) for _ in range(2)), key=lambda each: each.forward)


def _few(settings: Settings, exams: Exams) -> str | None:
    """What is wrong where a proof has too few items even if none of them loses anything; None where it has enough.

    Speech is the one kind whose packaged data does not suffice: that its attention is to be kept is what comes out.
    """
    exam, nothing = exams[0], np.ones(1)
    worst = exam.worst(nothing, nothing, settings.max_loss)
    fewest = max(exam.fewest, exam.proof(settings.max_loss, 1, worst).fewest)
    if exam.items >= fewest:
        return None
    own = "have the task give more" if settings.task else "give more data"
    if exam.task.kinds == ("speech",):
        own = "give recordings of your own by --task"
    return (
        f"a try of the proof must have at least {fewest} items for --max-loss {settings.max_loss:.4g}, even where none "
        f"of them loses anything: got {exam.items} of {exam.task.name}; {own}"
    )


def _too_little(settings: Settings, clock: Clock, least: float, length: int) -> ValueError:
    wanted = (least + clock.spent) / 60 / share_of_prefill(settings.phase)
    return ValueError(
        f"tune: minutes must suffice for the least that a claim needs, about {wanted:.1f} at {length} tokens on this "
        f"machine: got {settings.minutes:g}; pass more --minutes, or a shorter --length"
    )
