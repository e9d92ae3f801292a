"""Sirius: a cheap forward of a model writes some tokens, and one dense pass over them takes back what it would not say.

    1. cheap writes ``kernel`` tokens t_1 … t_k greedily
    2. full reads them in one pass, after what it has read before, and gives p_full of each
    3. accepted are the tokens before the first with
           t_i ≠ argmax p_full                                  where ``exact``
           p_full(t_i) < threshold, at a temperature            where not
       and in the place of that one comes argmax p_full
    4. keys and values of what is accepted are full's, so that the errors of cheap do not pile up

Where ``exact``, the text is the one that the dense model writes greedily, up to ties in rounding: a pass over
``kernel`` tokens adds in another order than single steps do. Else it is not: a token that full finds merely plausible
stays, as the source has it.

Source: "Sirius: Contextual Sparsity with Correction for Efficient LLMs", arXiv:2409.03856, without its tree. ``exact``
is this project's, and its default.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynattn.kv_caches.counts import check_counts
from dynattn.kv_caches.drafts.greedy import end_tokens, extended, forward, logits
from dynattn.kv_caches.full import FullCache
from dynattn.kv_caches.layer import LayeredCache
from dynattn.kv_caches.observed import refuse_right_padding

Cheap = Callable[[Any], AbstractContextManager[Any]]
"""Makes a model cheaper while its context is active: ``SelfDraft(NM(1, 2)).of``, ``Magnitude(0.5).apply``, …"""


class Round(NamedTuple):
    """One turn of writing and checking.

    Attributes:
        drafted: how many tokens were written cheaply.
        accepted: how many of them stayed.
        gained: by how many the text grew: those, and the correction where there was one.
    """

    drafted: int
    accepted: int
    gained: int


@dataclass(frozen=True)
class Corrected:
    """A text.

    Attributes:
        tokens: (batch, new) int64.
        rounds: how it came about; what was written behind the end of a text counts here, too.
        cache: the dense model's, of the prompt and all of ``tokens`` but the last one.
    """

    tokens: Tensor
    rounds: tuple[Round, ...]
    cache: LayeredCache

    @property
    def accepted(self) -> float:
        """How many tokens of a round stayed, on average."""
        return sum(one.accepted for one in self.rounds) / max(1, len(self.rounds))

    def cost(self, cheap: float, check: float = 1.0) -> float:
        """What a token of the text cost, where a dense step costs 1.

        Args:
            cheap: the cost of a cheap step; the share of the weights that it reads gives the effective density.
            check: the cost of a dense pass over ``kernel`` tokens: 1 where reading the weights is all that counts.
        """
        drafted, gained = (sum(getattr(one, field) for one in self.rounds) for field in ("drafted", "gained"))
        return (drafted * cheap + len(self.rounds) * check) / max(1, gained)


@dataclass(frozen=True)
class Sirius:
    """Writes by a cheap forward, and corrects by the dense one.

        model.set_attn_implementation("dynattn:dense")
        found = Sirius(SelfDraft(NM(1, 2)).of).generate(model, ids, max_new_tokens=64)

    Args:
        cheap: a function of the model that gives a context, in which the model is cheap. It is entered once a round:
            weights that are chosen anew each time cost more than they save, see
            :meth:`dynattn.sparsity.WeightSparsity.prepared`.
        kernel: how many tokens are written before they are checked.
        exact: whether the text has to be the dense model's own.
        threshold: else, how likely full has to find a token for it to stay.
        temperature: at which temperature.

    Raises:
        TypeError: ``cheap`` is no function, or ``kernel`` no int.
        ValueError: a number is out of range.
    """

    cheap: Cheap
    kernel: int = 16
    exact: bool = True
    threshold: float = 0.1
    temperature: float = 0.6

    def __post_init__(self) -> None:
        if not callable(self.cheap):
            raise TypeError(
                f"Sirius: cheap must be a function of the model that gives a context: got {self.cheap!r}; pass "
                "SelfDraft(...).of, or the apply of a method"
            )
        check_counts("Sirius", kernel=self.kernel)
        if not (0 <= self.threshold <= 1 and self.temperature > 0):
            raise ValueError(
                "Sirius: threshold must be a probability and temperature positive: got "
                f"{self.threshold} and {self.temperature}; 0.1 and 0.6 are usual"
            )

    @torch.no_grad()
    def generate(
        self, model: Any, input_ids: Tensor, max_new_tokens: int, attention_mask: Tensor | None = None
    ) -> Corrected:
        """Go on with a text. The samples of a batch go on together: a round accepts what all of them accept.

        Args:
            model: a Transformers decoder in eval mode.
            input_ids: (batch, length), at least 1.
            max_new_tokens: how many tokens are written; fewer where every sample has ended its text before. A sample
                that has ended goes on with whatever comes.
            attention_mask: (batch, length) 0 where a token is padding, on the left; None where none is.

        Returns:
            The text and how it came about.

        Raises:
            ValueError: ``max_new_tokens`` is negative, or a sample is padded on the right.
        """
        check_counts("Sirius.generate", least=0, max_new_tokens=max_new_tokens)
        if attention_mask is not None:
            refuse_right_padding(attention_mask, "Sirius")
        cache, text, mask = FullCache(), input_ids, attention_mask
        start, rounds = input_ids.shape[1], list[Round]()
        if start > 1:
            forward(model, input_ids[:, :-1], None if mask is None else mask[:, :-1], cache)
        ends = end_tokens(model).to(input_ids.device)
        ended = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        while text.shape[1] < start + max_new_tokens and not ended.all():
            count = min(self.kernel, start + max_new_tokens - text.shape[1])
            drafted = self._drafted(model, text, mask, cache, count)
            new, accepted = self._checked(model, text, drafted, mask, cache, ended)
            rounds.append(Round(count, accepted, new.shape[1]))
            text, mask = torch.cat([text, new], 1), extended(mask, new.shape[1])
            ended |= torch.isin(new, ends).any(1)
        written = text[:, start:]
        written = written[:, : _until_all_ended(written, ends)]
        _go_back(cache, start + written.shape[1] - 1)
        return Corrected(written, tuple(rounds), cache)

    def _drafted(self, model: Any, text: Tensor, mask: Tensor | None, cache: FullCache, count: int) -> Tensor:
        """What cheap writes, (batch, count). The cache is as before."""
        known, step, found = text.shape[1] - 1, text[:, -1:], []
        with self.cheap(model):
            for _ in range(count):
                step = forward(model, step, mask, cache).argmax(-1, keepdim=True)
                found.append(step)
                mask = extended(mask, 1)
        _go_back(cache, known)
        return torch.cat(found, 1)

    def _checked(
        self, model: Any, text: Tensor, drafted: Tensor, mask: Tensor | None, cache: FullCache, ended: Tensor
    ) -> tuple[Tensor, int]:
        """How the text goes on, (batch, from 1 to count), and how many of the drafted tokens are in it. The cache knows
        all of it but the last token."""
        count, known = drafted.shape[1], text.shape[1] - 1
        read = torch.cat([text[:, -1:], drafted[:, :-1]], 1)
        said = logits(model, read, extended(mask, count - 1), cache, count)
        own = said.argmax(-1)  # [batch, count]
        if self.exact:
            fine = drafted == own
        else:
            likely = (said.float() / self.temperature).softmax(-1)
            fine = likely.gather(-1, drafted[..., None])[..., 0] >= self.threshold
        agreed = (fine | ended[:, None]).long().cumprod(1).sum(1)  # [batch]
        accepted = int(agreed.min())
        new = drafted[:, :accepted]
        if accepted < count:
            follows = torch.where(agreed > accepted, drafted[:, accepted], own[:, accepted])
            new = torch.cat([new, follows[:, None]], 1)
        _go_back(cache, known + new.shape[1])
        return new, accepted


def _go_back(cache: FullCache, tokens: int) -> None:
    """Forget what came behind the first tokens. A cheap forward may have left layers out, which know less. Nothing
    outside of a forward holds what the layers returned to it, so that their room stays, and nothing is copied."""
    for layer in cache.layers:
        if layer.seen > tokens:
            layer.crop(tokens - layer.seen, keep_room=True)


def _until_all_ended(tokens: Tensor, ends: Tensor) -> int:
    """How many tokens there are until every sample has had one that ends its text."""
    there = torch.isin(tokens, ends).long().cumsum(1).clamp(max=1).amin(0)  # [new]
    return int((there == 0).sum()) + 1 if bool(there.any()) else tokens.shape[1]
