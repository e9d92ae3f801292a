"""Tasks of a user's own: items, and a function that scores one of them.

def score(pretrained, item) -> float:
    answer = pretrained.model(**pretrained.processor(item.question, return_tensors="pt")).logits[0, -1].argmax()
    return float(answer == item.answer)

Scored(items, score)
"""

from __future__ import annotations

import inspect
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import nn

import dynattn
from dynattn.integrations.transformers import Call, observing, register
from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks.base import Inputs, Outcome, Prepared, Task, first_tensor

Score = Callable[[Pretrained, Any], float]
"""Runs ``pretrained.model`` on an item, in any number of calls, and says how well that went."""

_HERE = Path(dynattn.__file__).parent
_LOOKED_AT = 4  # so many items show the model's inputs
_OF_GENERATING = ("past_key_values", "cache_position", "cache_params")  # what one call hands on to the next


@dataclass(frozen=True)
class _Items(Task):
    """What both kinds of task share.

    Args:
        items: anything that the function takes.
        score: of one item.
        title: what the items are, for people.
    """

    items: Sequence[Any]
    score: Score
    title: str = "a task of the user's own"

    kinds: ClassVar[tuple[Kind, ...]] = ("encoder", "decoder", "vision", "speech")

    @abstractmethod
    def refuse(self, score: float, number: int) -> None:
        """Raise a ValueError where a score is out of its range."""

    def __post_init__(self) -> None:
        for name, value in (("len", "__len__"), ("indices", "__getitem__")):
            if not hasattr(self.items, value):
                raise ValueError(
                    f"{self.name}: items must be a list: got a {type(self.items).__name__}, which has no {name}; pass "
                    "list(items)"
                )
        if not callable(self.score):
            raise ValueError(f"{self.name}: score must be a function: got a {type(self.score).__name__}")

    def prepare(self, pretrained: Pretrained) -> Prepared:
        if not len(self.items):
            raise ValueError(f"{self.name}: items must not be empty: give at least one")
        seen = [self._seen(pretrained, number) for number in range(min(_LOOKED_AT, len(self.items)))]
        seen.sort(key=lambda each: -each[0])  # the longest first: it is what is timed
        return Prepared(
            labels=tuple(f"item {i + 1}" for i in range(len(self.items))), steps=len(self.items),
            examples=tuple(inputs for _, inputs in seen), length=seen[0][0],
            summary=f"{len(self.items)} items of {self.title}", payload=list(enumerate(self.items)),
        )  # fmt: skip

    @torch.inference_mode()
    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        scores = []
        for number, item in data.payload:
            scores.append(self._scored(pretrained, number, item))
            advance()
        return Outcome(np.array(scores, np.float64), None)

    def _scored(self, pretrained: Pretrained, number: int, item: Any) -> float:
        with told(f"{self.name}: the function must score every item: item {number + 1}"):
            found = self.score(pretrained, item)
        try:
            if isinstance(found, (str, bytes)):
                raise TypeError("text that looks like a number is none")
            score = float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{self.name}: a score must be a number: item {number + 1} gives a {type(found).__name__}; return a "
                "float"
            ) from error
        self.refuse(score, number)
        return score

    @torch.no_grad()  # the inputs are used again, and those of inference mode could be used in it alone
    def _seen(self, pretrained: Pretrained, number: int) -> tuple[int, Inputs]:
        """The longest forward that an item asks for: its tokens and its inputs."""
        calls: list[Inputs] = []
        lengths = [0]

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(alone(pretrained.model, args, kwargs))

        def attended(call: Call) -> None:
            lengths.append(call.query.shape[2])

        register()
        pretrained.model.set_attn_implementation("dynattn:dense")
        hook = pretrained.model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            with observing(attended):
                self._scored(pretrained, number, self.items[number])
        finally:
            hook.remove()
            pretrained.model.set_attn_implementation(BASELINE)
        if not calls:
            raise ValueError(
                f"{self.name}: the score must come from the model: item {number + 1} was scored without a call of it; "
                "call pretrained.model, which is tuned, in the function"
            )
        return max(lengths), max(calls, key=lambda inputs: first_tensor(inputs).numel())


@final
@dataclass(frozen=True)
class Scored(_Items):
    """A score from 0 to 1 for each item, higher is better: 1 where an answer is right, for example."""

    name: ClassVar[str] = "own"
    metric: ClassVar[str] = "score of the user's own"
    higher_is_better: ClassVar[bool] = True

    def refuse(self, score: float, number: int) -> None:
        if not 0 <= score <= 1:
            raise ValueError(
                f"{self.name}: a score must be between 0 and 1: item {number + 1} gives {score:g}; divide by the most "
                "that there can be, or take dynattn.lab.tasks.own.Likelihoods for nats"
            )


@final
@dataclass(frozen=True)
class Likelihoods(_Items):
    """A negative log-likelihood for each item, nats per token, lower is better."""

    name: ClassVar[str] = "own-nats"
    metric: ClassVar[str] = "NLL of the user's own, nats per token"
    higher_is_better: ClassVar[bool] = False

    def refuse(self, score: float, number: int) -> None:
        if not 0 <= score < float("inf"):
            raise ValueError(
                f"{self.name}: a negative log-likelihood must be finite and at least 0: item {number + 1} gives "
                f"{score:g}; nats are −log p, per token"
            )


@contextmanager
def told(what: str) -> Iterator[None]:
    """While active, whatever a user's function raises becomes one sentence, with the line in which it was raised.

    Args:
        what: the beginning of the sentence, up to what raised.

    Raises:
        ValueError: the body raised something.
    """
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = next((frame for frame in frames if not Path(frame.filename).is_relative_to(_HERE)), frames[-1])
        said = " ".join(str(error).split())
        raise ValueError(
            f"{what} raised {type(error).__name__}{': ' if said else ''}{said} ({Path(at.filename).name}, line "
            f"{at.lineno})"
        ) from error


def alone(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Inputs:
    """A call's inputs, by name, such that it can be made again: without the cache that it found and would fill."""
    signature = inspect.signature(model.forward)
    given = signature.bind(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given.update(given.pop(name, {}))
    found = {name: value for name, value in given.items() if name not in _OF_GENERATING and value is not None}
    return {**found, "use_cache": False} if "use_cache" in signature.parameters else found
