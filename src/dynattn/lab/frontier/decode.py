"""The decode phase: dense attention reads the context, and the method reads question and answer, over a key-value
cache.

The prompt ends before the question, so that a cache that forgets has to do so before it knows what will be asked. The
work of a step, and the bytes that it reads of the cache, are counted at the first token after the prompt; the time is
that of one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynattn.account import Work, counting
from dynattn.integrations.transformers import Call, observing
from dynattn.lab.decode import ways
from dynattn.lab.decode.prompt import PIECE, Prompt, cache_of, read, score, step_seconds, tell
from dynattn.lab.figures import BASELINE
from dynattn.lab.frontier.results import InputWork
from dynattn.lab.frontier.work import CountedCall, cache_read, see, tally
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks import TASKS, Prepared
from dynattn.lab.tasks.choosing import Asked, Choosing
from dynattn.lab.tasks.passkey import Passkey
from dynattn.lab.tasks.recall import Recall
from dynattn.lab.timing import LEAST_ROUNDS, Timing, interleaved, own_seconds

QUESTION = 64
"""How many tokens before the answer are read after the prompt: the question, and some of the text. Where questions are
asked one by one after a text, the text is the prompt."""

_LOOKED = 2  # the first step of so many items is counted


def answers(task: str) -> bool:
    """Whether a task has an answer that could be decoded."""
    return issubclass(TASKS[task], (Recall, Passkey, Choosing))


def prompts(pretrained: Pretrained, data: Prepared) -> list[Prompt]:
    """The context of every item, densely read.

    Raises:
        ValueError: the contexts are too short.
    """
    return [read(pretrained.model, _ids(item)[:, : _start(item)]) for item in data.payload]


def examine(pretrained: Pretrained, name: str, data: Prepared, read_before: Sequence[Prompt]) -> list[float]:
    """Every item's score, its end decoded by a method: the NLL of the answer, or the share of right answers chosen.

    Args:
        pretrained: the model; its attention implementation is set.
        name: the name of the method, or ``sdpa``.
        data: the data of a task that :func:`answers`.
        read_before: what :func:`prompts` gave.
    """
    way, scores = _way(name), []
    for item, prompt in zip(data.payload, read_before, strict=True):
        if isinstance(item, Asked):
            scores.append(item.score(partial(_told, pretrained.model, prompt, way)))
        else:
            ids, answer = item
            scores.append(score(pretrained.model, prompt, way, ids, answer)[0])
    return scores


@torch.inference_mode()
def look(pretrained: Pretrained, name: str, data: Prepared, read_before: Sequence[Prompt]) -> InputWork:
    """The work of one step, on average; see :func:`dynattn.lab.frontier.work.look`.

    Args:
        As :func:`examine`; prompts of the first items suffice.
    """
    way, layers = _way(name), Work()
    seen: list[CountedCall] = []
    read: list[float | None] = []

    def note(call: Call) -> None:
        seen.extend(see(call))
        read.append(cache_read(call))

    chosen = list(zip(data.payload, read_before, strict=False))[:_LOOKED]
    for item, prompt in chosen:
        with counting(pretrained.model) as account:
            _step(pretrained, ways.find(ways.BASELINE), item, prompt)
        layers += account.linear
        _step(pretrained, way, item, prompt, note)
    work = tally(seen, layers.linear, len(chosen)).model_copy(
        update={"read": _each(read, len(chosen)), "weights": layers.read / len(chosen)}
    )
    # The kept mass of a cache that forgets is not known, since nobody knows the weights of forgotten keys.
    return work.model_copy(update={"kept_mass": None}) if way.forgets else work


@torch.inference_mode()
def bytes_read(pretrained: Pretrained, name: str, data: Prepared, read_before: Sequence[Prompt]) -> float | None:
    """The bytes of the cache that one step reads, on average, and nothing else of what :func:`look` counts.

    Args:
        As :func:`look`.

    Returns:
        The bytes; None where the method keeps no pairs.
    """
    read: list[float | None] = []
    chosen = list(zip(data.payload, read_before, strict=False))[:_LOOKED]
    for item, prompt in chosen:
        _step(pretrained, _way(name), item, prompt, lambda call: read.append(cache_read(call)))
    return _each(read, len(chosen))


def race(pretrained: Pretrained, name: str, data: Prepared, seconds: float) -> tuple[Timing, Timing]:
    """Time a step with dense attention and with a method, after the first item's prompt, in alternation.

    Args:
        pretrained: the model; its attention implementation is set.
        name: the name of the method.
        data: the data of a task that :func:`answers`.
        seconds: how long to go on; three rounds are taken at least.

    Returns:
        The timings of dense attention and of the method.
    """
    ids, start = _ids(data.payload[0]), _start(data.payload[0])
    prompt = read(pretrained.model, ids[:, :start])
    after = ids[:, start : start + PIECE]

    timings = interleaved(
        {way: partial(step_seconds, pretrained.model, prompt, _way(way), after) for way in (BASELINE, name)},
        seconds=seconds, least=LEAST_ROUNDS, min_sample=None, each=after.shape[1],
        elapsed=own_seconds,  # making the cache does not count
    )  # fmt: skip
    return timings[BASELINE], timings[name]


def _step(
    pretrained: Pretrained, way: ways.Way, item: Any, prompt: Prompt, note: Callable[[Call], None] | None = None
) -> None:
    """Decode one token after a prompt. The calls of attention are told where ``note`` is given."""
    start = _start(item)
    cache = cache_of(pretrained.model, prompt, way)
    pretrained.model.set_attn_implementation(way.together)
    with observing(note) if note is not None else nullcontext():
        pretrained.model(input_ids=_ids(item)[:, start : start + 1], use_cache=True, past_key_values=cache)


def _each(read: Sequence[float | None], items: int) -> float | None:
    """The sum over all calls, of one item; None where a call is not known."""
    known = [each for each in read if each is not None]
    return sum(known) / items if len(known) == len(read) else None


def _way(name: str) -> ways.Way:
    return ways.find(ways.BASELINE if name == BASELINE else name)


def _told(model: Any, prompt: Prompt, way: ways.Way, ids: Tensor) -> Tensor:
    """The logits at the end of a question, by a way that has read no other one."""
    return tell(model, prompt, way, ids)[-1]


def _ids(item: Any) -> Tensor:
    return item.prompt if isinstance(item, Asked) else item[0]


def _start(item: Any) -> int:
    """How many tokens of an item are read densely."""
    length = _ids(item).shape[1]
    start = item.ids.shape[1] if isinstance(item, Asked) else length - item[1] - QUESTION
    if start < 1:
        raise ValueError(
            f"decode: contexts must be longer than their last {QUESTION} tokens and the answer: got {length}; give "
            "more --tokens"
        )
    return start
