"""The base classes of methods. A method has a name that :func:`~dynattn.methods.parse` turns back into it, and keeps
pairs (:class:`PairMethod`) or mixes values in another way (:class:`MixingMethod`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum, auto
from typing import ClassVar, NamedTuple

from torch import Tensor
from typing_extensions import Self


class Rows(NamedTuple):
    """A block of queries, and what a choice may look at besides their scores.

    Attributes:
        query: (batch, heads, rows, head_dim), the block.
        key: (batch, heads, kv_len, head_dim), all keys, each repeated for the query heads that share it.
        offset: the position of the block's first query on the key axis.
        scale: factor of the scores.
        group: how many query heads, one behind another, share their keys.
    """

    query: Tensor
    key: Tensor
    offset: int
    scale: float
    group: int = 1


class Glance(NamedTuple):
    """What it costs to make a choice from something cheaper than the exact scores.

    Attributes:
        multiply_adds: the multiply-adds that the choice needs for each allowed pair.
        key_bytes: the bytes that it reads of each key, besides what the kept pairs need.
    """

    multiply_adds: float
    key_bytes: float


class Reach(NamedTuple):
    """The pairs that positions alone tell: keys near a query, and the first few.

    Attributes:
        window: keys less than so many positions from the query.
        sinks: the first so many keys.
    """

    window: int
    sinks: int


class Choice(Enum):
    """How a method chooses, which decides which kernels can compute it.

    Attributes:
        GROUPS: the keys of a group compete with each other. :class:`dynattn.NM` is the one method that chooses so.
        ROWS: each query chooses by its own scores alone, as ``row_rule`` says.
        BLOCKS: whole blocks of pairs are kept or dropped; ``choose_blocks`` finds them without all scores. N:M may
            choose inside of them or, beside a window, where there are none.
        SKIPS: blocks of pairs are dropped by running maxima of the scores, of all pairs or of those that ``scored``
            keeps. :class:`dynattn.BlockSkip` is the one method that chooses so.
        WINDOW: positions alone decide. :class:`dynattn.Window` is the one method that chooses so.
        PAIRS: anything else that :meth:`PairMethod.choose` says.
        NONE: nothing is chosen; the method is not a softmax over kept pairs.
    """

    GROUPS = auto()
    ROWS = auto()
    BLOCKS = auto()
    SKIPS = auto()
    WINDOW = auto()
    PAIRS = auto()
    NONE = auto()


class RowRule(NamedTuple):
    """What a row keeps by its own scores, by count, by weight or by mass.

    By count, a row with ``a`` allowed keys keeps ``min(a, most, max(floor, ⌈numerator · a / denominator⌉))`` of them.

    Attributes:
        most: the row keeps at most so many pairs, between 1 and 2**31 - 1.
        floor: the row keeps at least so many pairs where it has as many, between 0 and 2**31 - 1.
        numerator, denominator: the share of the allowed keys, above 0 and at most 1; the denominator is at most a
            million.
        weight: where it is at least 0, the row keeps instead the dense softmax weights that exceed it, and the largest
            one. -1 switches this off.
        mass: where it is above 0, the row keeps instead the fewest of its largest weights that hold this share of all.
            0 switches this off.
    """

    most: int = 2**31 - 1
    floor: int = 0
    numerator: int = 1
    denominator: int = 1
    weight: float = -1.0
    mass: float = 0.0


class BlockRule(NamedTuple):
    """Which blocks of keys a block of queries keeps: some by force, and of the others the best by their mean scores.

    By count, of ``a`` blocks with an allowed pair ``max(floor, ⌈numerator · a / denominator⌉)`` are kept, the forced
    ones among them.

    Attributes:
        block: queries and keys of a block, between 1 and 1024.
        window, sinks: blocks are kept by force that hold a key less than ``window`` positions from one of the queries,
            or one of the first ``sinks`` keys; 0 for none.
        floor: a row of blocks keeps at least so many, where it has as many.
        numerator, denominator: the share of the blocks, above 0 and at most 1; the denominator is at most a million.
        mass: where it is above 0, the fewest are kept that, with the forced ones, hold this share of the softmax over
            the mean scores. 0 switches this off.
        alike: blocks of queries, and of keys, whose vectors have a smaller mean cosine are kept by force; 0 for none.
    """

    block: int
    window: int
    sinks: int
    floor: int = 0
    numerator: int = 1
    denominator: int = 1
    mass: float = 0.0
    alike: float = 0.0


class Method(ABC):
    """What attention computes in place of the full softmax. Subclasses are frozen dataclasses, one file each.

    A subclass with a ``__post_init__`` of its own ends it with ``super().__post_init__()``.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known_as", self.name)

    @property
    def known_as(self) -> str:
        """``name`` as it was when the object was made, a constant to the compiler.

        When a function under torch.compile meets a second object of a class, its numbers become symbols, and no name
        can be made of symbols. A name that was made before is a constant.
        """
        return self.__dict__.get("_known_as") or self.name

    @property
    @abstractmethod
    def choice(self) -> Choice:
        """How the method chooses."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short form, as in ``nm-2-4``; :func:`dynattn.methods.parse` turns it back into the method."""

    @classmethod
    @abstractmethod
    def from_name(cls, name: str) -> Self | None:
        """The method that ``name`` stands for, or None where it is not a name of this class."""

    @property
    def keeps_everything(self) -> bool:
        """True where the method is dense attention exactly."""
        return False

    def keeps_all(self, q_len: int, kv_len: int) -> bool:
        """Whether it is dense attention of so many queries to so many keys, whatever their scores and the mask are.

        May be False where that would be long to find out: the answer is one of speed.

        Args:
            q_len, kv_len: the lengths of a call.
        """
        return self.keeps_everything

    @property
    def looks_at_positions(self) -> bool:
        """Whether the choice depends on where queries stand among the keys, as a window does."""
        return False


class PairMethod(Method):
    """Keeps some of the pairs of query and key; the output is the softmax over the kept ones, times V.

    Attributes:
        rows_together: the choice is made for aligned runs of so many consecutive queries; 1 where each query chooses by
            itself.
        whole_blocks: where :meth:`choose_blocks` gives the choice, how many queries and keys a block has, between 1 and
            1024, counted from query 0 and from key 0; kernels then skip dropped blocks. 0 where it does not.
        scored: where exact scores are needed of those pairs alone that another method keeps, that method; else None.
        inside_blocks: where whole blocks are kept, the N:M method that chooses among the pairs of the kept ones, of
            which no group of keys lies in two blocks; None where all their pairs are kept. With ``Choice.BLOCKS`` and
            no ``whole_blocks`` it chooses among all.
        joined: what is kept besides all of that; None for nothing.
        within: what all of that is cut down to: a chosen pair outside of it is dropped; None to cut nothing.
    """

    rows_together: ClassVar[int] | property = 1
    whole_blocks: ClassVar[int] | property = 0
    inside_blocks: ClassVar[PairMethod | None] | property = None
    scored: ClassVar[PairMethod | None] | property = None
    joined: ClassVar[Reach | None] | property = None
    within: ClassVar[Reach | None] | property = None

    @property
    def beside_window(self) -> bool:
        """Whether a window joins pairs to the choice, or cuts it."""
        return self.joined is not None or self.within is not None

    @property
    def choice(self) -> Choice:
        """By whole blocks where the method has them, else by pairs."""
        return Choice.BLOCKS if self.whole_blocks else Choice.PAIRS

    def row_rule(self) -> RowRule:
        """What a row keeps. Called where ``choice`` is ``Choice.ROWS``.

        Raises:
            NotImplementedError: the method's class does not define it.
        """
        raise NotImplementedError(f"{self.name} has no rule for rows; define row_rule()")

    @abstractmethod
    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The kept pairs of a block of queries: the method's definition.

        A block begins at a multiple of ``rows_together`` queries. The choice must not depend on how queries are cut
        into blocks, nor on anything but the arguments, because the gradient makes the choice again.

        Args:
            scores: ``scale · QKᵀ + bias``, (batch, heads, rows, kv_len), -inf where the pair is not allowed.
            rows: the queries and keys themselves, and where they stand.

        Returns:
            bool, of the shape of ``scores``. What is not allowed is never kept, whatever this says.
        """

    def choose_blocks(self, query: Tensor, key: Tensor, attn_mask: Tensor | None, causal: bool, scale: float) -> Tensor:
        """The choice that :meth:`choose` makes, in whole blocks and without the scores of all pairs.

        The two may differ only as sums in another order round differently. Called where ``whole_blocks`` is not 0.

        Args:
            query: (batch, heads, q_len, head_dim).
            key: (batch, kv_heads, kv_len, head_dim).
            attn_mask: bool, the same for all queries: broadcasts to (batch, heads, 1, kv_len), True may be attended; or
                None. With other masks :meth:`choose` is asked, or kernels choose by :meth:`block_rule`.
            causal: forbid keys after the query, aligned bottom-right.
            scale: factor of the scores.

        Returns:
            bool (batch, heads, ⌈q_len / whole_blocks⌉, ⌈kv_len / whole_blocks⌉): blocks whose allowed pairs are kept,
            or those of them that ``inside_blocks`` keeps.

        Raises:
            NotImplementedError: the method's class does not define it.
        """
        raise NotImplementedError(f"{self.name} has no choice of whole blocks; define choose_blocks()")

    def block_rule(self) -> BlockRule | None:
        """The choice of whole blocks as a rule that kernels follow, under any mask; None where :meth:`choose_blocks`
        alone makes it."""
        return None

    def glance(self, head_dim: int, itemsize: int) -> Glance | None:
        """What the choice costs an implementation that computes no more than it must; None where it needs all exact
        scores.

        :mod:`dynattn.account` counts with it. Where it is None, all allowed pairs are scored; else only the kept ones
        are, or those that ``scored`` keeps.

        Args:
            head_dim: the head_dim of queries and keys.
            itemsize: the bytes of an element.
        """
        return None


class MixingMethod(Method):
    """Computes something other than a softmax over kept pairs: linear attention, or sparse plus low rank."""

    @property
    def choice(self) -> Choice:
        """None."""
        return Choice.NONE

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        """The method's definition, differentiable; arguments are checked, as :func:`dynattn.attention` takes them.

        Args:
            query: (batch, heads, q_len, head_dim).
            key: (batch, kv_heads, kv_len, head_dim).
            value: (batch, kv_heads, kv_len, value_dim).
            attn_mask: broadcasts to (batch, heads, q_len, kv_len): bool (True: allowed) or float (added), or None.
            causal: forbid keys after the query, aligned bottom-right.
            scale: factor of the scores.

        Returns:
            (batch, heads, q_len, value_dim), in the dtype of ``query``.

        Raises:
            ValueError: the method is not defined for such a mask.
        """
