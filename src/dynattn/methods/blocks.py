"""The bases of methods that keep blocks of keys for blocks of queries: forced blocks, and a value to rank the rest.

    kept(I, J) ⇔ J holds a key near I or one of the first,  or  J is among the best of the others by value(I, J)

A subclass says how many are the best. The forced blocks count among those it may keep. The value is an estimate of one
of several kinds in :class:`EstimatedBlocks`, and what a subclass of :class:`Blocks` says elsewhere.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dynattn.maths import antidiagonal, bounds, estimate, lowrank, pooled, runs, sampled, similar
from dynattn.maths.estimate import Estimated, Input
from dynattn.methods.base import BlockRule, Glance, PairMethod, Rows

LARGEST = 1024  # the largest block
LEAST_WHOLE = 8  # a byte for every block of 8 x 8 pairs takes no more memory than queries and keys, up to length 64k


class Estimate(NamedTuple):
    """A way to rank blocks; the files of ``maths`` say what each computes.

    Attributes:
        of_scores: the definition, from the scores of all pairs.
        of_input: the same without the scores of all pairs.
        glance: what the estimate costs, given head_dim, the bytes of an element, and the size of a block.
        multiple: the size of a block must be a multiple of this.
        sure: the blocks that the estimate cannot judge, which are kept in any case, from queries, keys and the size of
            a block: bool (batch, heads, blocks of queries, blocks of keys). None where it judges all.
    """

    of_scores: Callable[[Tensor, Rows, int], tuple[Tensor, Tensor]]
    of_input: Callable[[Input, int], Iterator[Estimated]]
    glance: Callable[[int, int, int], Glance]
    multiple: int = 1
    sure: Callable[[Tensor, Tensor, int], Tensor] | None = None


ESTIMATES = {
    "mean": Estimate(
        lambda scores, _, size: pooled.of_scores(scores, size), pooled.of_input,
        lambda d, b, size: Glance(d / size**2, d * b / size),
    ),
    "similar": Estimate(
        lambda scores, _, size: pooled.of_scores(scores, size), pooled.of_input,
        lambda d, b, size: Glance(d / size**2, d * b), sure=similar.sure,
    ),
    "bounds": Estimate(
        lambda scores, rows, size: bounds.of_scores(scores, size, rows.query, rows.key, rows.scale), bounds.of_input,
        lambda d, b, size: Glance(2 * d / size**2, 2 * d * b / size),
    ),
    "antidiagonal": Estimate(
        lambda scores, _, size: antidiagonal.of_scores(scores, size), antidiagonal.of_input,
        lambda d, b, _: Glance(d / antidiagonal.STEP, d * b), antidiagonal.STEP,
    ),
    "sampled": Estimate(
        lambda scores, _, size: sampled.of_scores(scores, size), sampled.of_input,
        lambda d, b, size: Glance(d / min(size, sampled.STEP), d * b),
    ),
    "runs": Estimate(
        lambda scores, _, size: runs.of_scores(scores, size), runs.of_input,
        lambda d, b, size: Glance(d / min(size, runs.STEP), d * b),
    ),
    "lowrank": Estimate(
        lambda scores, rows, size: lowrank.of_scores(scores, size, rows.query, rows.key, rows.scale), lowrank.of_input,
        lambda d, b, _: Glance(lowrank.rank(d), d * b),
    ),
}  # fmt: skip
"""Every estimate by its name."""

FORCED = r"(?:-w(?P<window>\d+))?(?:-s(?P<sinks>\d+))?"
"""What is kept by force, at the end of a name, as a regular expression."""

OPTIONS = rf"(?:-(?P<by>{'|'.join(ESTIMATES)}))?{FORCED}"
"""The end of a name with an estimate, as a regular expression."""


class Blocks(PairMethod):
    """Keeps, for every block of queries, some blocks of keys.

    Attributes:
        block: queries and keys in a block.
        window, sinks: blocks with a key in the window, or among the sinks, are always kept. A window of None is as wide
            as a block.
    """

    block: int
    window: int | None
    sinks: int

    default_sinks: ClassVar[int] = 4

    def __post_init__(self) -> None:
        owner = type(self).__name__
        for field, least, most in (("block", 1, LARGEST), ("window", 0, 2**31 - 1), ("sinks", 0, 2**31 - 1)):
            value = getattr(self, field)
            if field == "window" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{owner}: {field} must be an int: got {value!r}; try {owner}(0.25, block=64)")
            if not least <= value <= most:
                raise ValueError(f"{owner}: {field} must be between {least} and {most}: got {value}; leave it out")
        super().__post_init__()

    def options(self, by: str = "") -> str:
        """The end of the name: what differs from the defaults, with ``by`` behind the block."""
        window = "" if self.window is None else f"-w{self.window}"
        sinks = f"-s{self.sinks}" if self.sinks != self.default_sinks else ""
        return f"-b{self.block}{by}{window}{sinks}"

    def keeps_all(self, q_len: int, kv_len: int) -> bool:
        """True where one block holds all keys, or two do and are neighbours of all queries, and the window keeps
        them."""
        one = q_len <= kv_len <= self.block and self._window >= 1
        two = q_len == kv_len <= 2 * self.block and self._window >= 2
        return self.keeps_everything or ((one or two) and self.inside_blocks is None)

    @property
    def rows_together(self) -> int:
        """The block."""
        return self.block

    @property
    def looks_at_positions(self) -> bool:
        """True where there is a window."""
        return self._window > 0

    @property
    def whole_blocks(self) -> int:
        """The size of a block where it is at least 8, else 0."""
        return self.block if self.block >= LEAST_WHOLE else 0

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The forced blocks and the best of the others, each with all its pairs."""
        length, kv_len = scores.shape[-2:]
        value, some = self.of_scores(scores, rows)
        forced = self.near(range(value.shape[2]), rows.offset, length, kv_len).to(value.device)
        sure = self.sure(rows.query, rows.key)
        forced = forced if sure is None else forced | sure
        kept = self._kept(value, some, forced)
        return kept.repeat_interleave(self.block, -2).repeat_interleave(self.block, -1)[..., :length, :kv_len]

    def choose_blocks(self, query: Tensor, key: Tensor, attn_mask: Tensor | None, causal: bool, scale: float) -> Tensor:
        """The same, without the scores of all pairs."""
        (q_len, kv_len), call = (x.shape[2] for x in (query, key)), Input(query, key, attn_mask, causal, scale)
        rows, columns = (-(-length // self.block) for length in (q_len, kv_len))
        kept = query.new_empty((*query.shape[:2], rows, columns), dtype=torch.bool)
        sure = self.sure(query, key)
        for at, value, some in self.of_input(call):
            forced = self.near(range(at.start, at.stop), call.offset, q_len, kv_len).to(value.device)
            forced = forced if sure is None else forced | sure[:, :, at]
            kept[:, :, at] = self._kept(value, some.expand_as(value), forced)
        return kept

    @abstractmethod
    def of_scores(self, scores: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The value of each block, from the scores of all pairs.

        Args:
            scores, rows: as :meth:`choose` has them.

        Returns:
            The values, and whether a pair of the block is allowed: (batch, heads, blocks of queries, blocks of keys).
        """

    @abstractmethod
    def of_input(self, call: Input) -> Iterator[Estimated]:
        """The same without the scores of all pairs, from the first row of blocks to the last."""

    @abstractmethod
    def best(self, value: Tensor, others: Tensor, forced: Tensor) -> Tensor:
        """The blocks kept besides the forced ones.

        Args:
            value: (..., blocks of keys), finite where ``others`` is True except for NaN and +inf, which count as the
                largest.
            others: bool, same shape: the blocks to choose from.
            forced: bool, same shape.

        Returns:
            bool, same shape; what it says elsewhere than in ``others`` does not count.
        """

    def sure(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Blocks that are kept by force for what their queries and keys are; None where there are none.

        Args:
            query: (batch, heads, rows, head_dim).
            key: (batch, kv_heads or heads, kv_len, head_dim).

        Returns:
            bool (batch, heads, blocks of queries, blocks of keys).
        """
        return None

    @property
    def _window(self) -> int:
        return self.block if self.window is None else self.window

    def covers(self, window: int, sinks: int) -> bool:
        """Whether the forced blocks hold every key of such a window, and so many of the first."""
        return self._window >= window and self.sinks >= sinks

    def near(self, rows: range, offset: int, q_len: int, kv_len: int) -> Tensor:
        """The blocks that are kept by force, of some rows of blocks, where a pair of them is allowed."""
        return estimate.near(rows, offset, q_len, kv_len, self.block, self._window, self.sinks)

    def _kept(self, value: Tensor, some: Tensor, forced: Tensor) -> Tensor:
        must = forced & some
        others = some & ~must
        # A block to which an estimate gives no weight at all still ranks before every block that may not be attended.
        value = value.clamp(min=torch.finfo(value.dtype).min)
        return must | (self.best(value, others, must) & others)


class EstimatedBlocks(Blocks):
    """Ranks the blocks by an estimate of the attention that they receive.

    Attributes:
        by: name of the estimate.
    """

    by: str

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        if not isinstance(self.by, str) or self.by not in ESTIMATES:
            raise ValueError(f"{owner}: by must be one of {', '.join(ESTIMATES)}: got {self.by!r}; try 'sampled'")
        multiple = ESTIMATES[self.by].multiple
        if self.block % multiple:
            raise ValueError(f"{owner}: block must be a multiple of {multiple} with {self.by!r}: got {self.block}")

    def options(self, by: str = "") -> str:
        """The end of the name, with the estimate where it is not the mean."""
        return super().options(f"-{self.by}" if self.by != "mean" else by)

    def glance(self, head_dim: int, itemsize: int) -> Glance:
        """What the estimate is made from."""
        return ESTIMATES[self.by].glance(head_dim, itemsize, self.block)

    def block_rule(self) -> BlockRule | None:
        """The rule where blocks are ranked by their means, as kernels do."""
        if not self.whole_blocks or self.by not in ("mean", "similar"):
            return None
        forced = BlockRule(self.block, self._window, self.sinks, alike=similar.ALIKE if self.by == "similar" else 0.0)
        return self._ranked(forced)

    @abstractmethod
    def _ranked(self, forced: BlockRule) -> BlockRule:
        """The rule with how many are kept besides the forced blocks."""

    def sure(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Those that the estimate cannot judge."""
        find = ESTIMATES[self.by].sure
        return None if find is None else find(query, key, self.block)

    def of_scores(self, scores: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The estimate by its definition."""
        return ESTIMATES[self.by].of_scores(scores, rows, self.block)

    def of_input(self, call: Input) -> Iterator[Estimated]:
        """The estimate from queries and keys."""
        return ESTIMATES[self.by].of_input(call, self.block)
