"""A text and the numbers that are hidden in it, from one forward: what two exams need takes the time of one.

The text's own tokens alone count for its perplexity: what is said of numbers between them, and asked for at the end,
does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks.base import Outcome, Prepared, Task, uniform
from dynattn.lab.tune.keys import Keys

_CHUNK = 128  # positions whose logits are looked at together: a cross-entropy over all of them would copy the logits


@final
@dataclass(frozen=True)
class TextWithKeys(Task):
    """NLL of a text in which numbers are hidden, per token of its own; an item is a text.

    Args:
        keys: hides the numbers.
        titles: of the texts.
    """

    keys: Keys
    titles: tuple[str, ...]

    name: ClassVar[str] = "perplexity"
    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)
    metric: ClassVar[str] = "NLL, nats per token"
    higher_is_better: ClassVar[bool] = False

    def prepare(self, pretrained: Pretrained) -> Prepared:
        return self.of(self.keys.prepare(pretrained), pretrained)

    def of(self, hidden: Prepared, pretrained: Pretrained) -> Prepared:
        """The texts in which numbers are hidden already.

        Args:
            hidden: of :class:`dynattn.lab.tune.keys.Keys`.
            pretrained: the model.
        """
        many = len(hidden.labels) // len(hidden.payload)
        said = f"{len(self.titles)} {self.keys.whose} of {hidden.length} tokens, with {many} numbers hidden in each"
        return replace(hidden, labels=self.titles, chance=uniform(pretrained), summary=said)

    @torch.inference_mode()
    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        scores, numbers = [], []
        for ids, answers, text in data.payload:
            given = ids.to(pretrained.model.device)
            told = _told(pretrained.model(input_ids=given, use_cache=False).logits[0, :-1], given[0, 1:]).cpu()
            scores.append(told[text[1:]].mean().item())
            numbers += [told[start - 1 : stop - 1].mean().item() for start, stop in answers]
            advance()
        return Outcome(np.array(scores), None, beside=np.array(numbers))


def _told(logits: Tensor, target: Tensor) -> Tensor:
    """(positions,) NLL of each token."""
    parts = zip(logits.split(_CHUNK), target.split(_CHUNK), strict=True)
    return torch.cat([nn.functional.cross_entropy(each.float(), its, reduction="none") for each, its in parts])
