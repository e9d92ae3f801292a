"""Texts that are decoded after a prompt, and what each way to decode makes of them.

The prompt is read densely, once for all ways. Then each way reads on, a few tokens at a time, with the keys that its
cache still holds. What is scored are blocks of the text that goes on, and numbers that were hidden in the prompt; the
item is the text. Numbers are asked for after the prompt, so that a cache that forgets has to do so before it knows what
will be asked. A way may be one ``with`` a setting by which linear layers leave something out of what comes after the
prompt: ``dense-in-place with inputs-3``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.lab.decode import ways
from dynattn.lab.decode.prompt import PIECE, Prompt, cache_of, read
from dynattn.lab.models import Pretrained
from dynattn.lab.tune.exams import SECOND_LIMIT
from dynattn.lab.tune.keys import Keys
from dynattn.lab.tune.pieces import Piece

AFTER = 257
"""Tokens after the prompt: a token to begin with, and what is scored."""

STEPS = 16
"""Tokens that are decoded to time a step."""

IN_PLACE = "dense-in-place"
"""The way that forgets nothing and copies nothing."""

Applied = Callable[[str], Callable[[], AbstractContextManager[Any]]]
"""Gives for the label of a setting what has linear layers work by it."""

_WITH = " with "
_BLOCK = 16  # tokens of which a score is the mean; the item is the text
_QUESTION = 16  # tokens between the prompt and the first answer


class Task(NamedTuple):
    """What is scored.

    Attributes:
        name: its name.
        metric: what a score is.
        times: the limit is so many times as wide.
    """

    name: str
    metric: str
    times: float


TASKS = (
    Task("decoding", "NLL of text after the prompt, nats per token", 1.0),
    Task("keys, decoded", "NLL of a number hidden in the prompt, nats per token", SECOND_LIMIT),
)
"""The one that decides, and the unlike one."""


class Reading(NamedTuple):
    """A text.

    Attributes:
        ids: (1, tokens).
        start: where the prompt ends.
        spans: first token of each block or number, and the one behind its last.
    """

    ids: Tensor
    start: int
    spans: tuple[tuple[int, int], ...]


def candidates(length: int) -> tuple[str, ...]:
    """Ways to decode after so many tokens, the mildest first."""
    return (
        IN_PLACE, *(f"cache-spatten-{keep}" for keep in (0.75, 0.5, 0.25)),
        *dict.fromkeys(f"cache-quest-{16 * max(1, length // (16 * part))}" for part in (4, 8)),
        *(ways.cut_once(kind, max(6, length // part)) for part in (4, 8) for kind in ("adasnapkv", "snapkv")),
        *(f"cache-window-{length // part}-s4" for part in (2, 4, 8)),
    )  # fmt: skip


def going_on(piece: Piece) -> Reading:
    """A text whose last tokens are decoded."""
    length = piece.ids.shape[1]
    first = length - AFTER + 1
    return Reading(piece.ids, first - 1, tuple((at, min(at + _BLOCK, length)) for at in range(first, length, _BLOCK)))


def numbers(pretrained: Pretrained, pieces: Sequence[Piece], length: int, seed: int) -> list[Reading]:
    """Texts with hidden numbers; the prompt ends before the first is asked for."""
    hay = tuple(piece.ids[:, :length] for piece in pieces)
    hidden = Keys(hay, seed=seed).prepare(pretrained).payload
    return [Reading(each.ids, each.answers[0][0] - _QUESTION, each.answers) for each in hidden]


def joined(way: str, label: str) -> str:
    """The name of a way with a setting of linear layers."""
    return f"{way}{_WITH}{label}"


def parted(name: str) -> tuple[str, str | None]:
    """The way and the setting's label; None where linear layers are dense."""
    way, found, label = name.partition(_WITH)
    return way, label if found else None


def around(name: str, applied: Applied | None) -> Callable[[], AbstractContextManager[Any]]:
    """What has linear layers work by the setting that a name holds, if it holds one.

    Args:
        name: of a way, with a setting or without.
        applied: knows the settings; None where there are none.
    """
    label = parted(name)[1]
    return nullcontext if label is None or applied is None else applied(label)


@torch.inference_mode()
def nats(
    model: nn.Module, reading: Reading, names: Sequence[str], applied: Applied | None = None
) -> dict[str, list[float]]:
    """NLL of each block or number, nats per token, by each way.

    Args:
        model: a Transformers decoder; its attention implementation is set.
        reading: the text.
        names: of the ways, with settings of linear layers or without.
        applied: knows the settings.
    """
    thin = {name: around(name, applied) for name in names}
    ids = reading.ids.to(next(model.parameters()).device)
    prompt = read(model, ids[:, : reading.start])
    return {name: _nats(model, prompt, ids, reading, ways.find(parted(name)[0]), thin[name]) for name in names}


def _nats(
    model: nn.Module, prompt: Prompt, ids: Tensor, reading: Reading, way: ways.Way,
    thin: Callable[[], AbstractContextManager[Any]],
) -> list[float]:  # fmt: skip
    cache = cache_of(model, prompt, way)
    model.set_attn_implementation(way.together)  # type: ignore[operator]
    rest = ids[:, reading.start : -1].split(PIECE, 1)
    with thin():
        logits = [model(input_ids=piece, past_key_values=cache, use_cache=True).logits[0] for piece in rest]
    told = nn.functional.cross_entropy(torch.cat(logits).float(), ids[0, reading.start + 1 :], reduction="none")
    return [told[a - reading.start - 1 : b - reading.start - 1].mean().item() for a, b in reading.spans]
