"""Measures what a model's attention loses while it runs: the exact kept mass of a few query rows of every call.

    kept mass of a row = Σ_kept softmax(s) over all that the row may attend to

In each call a share of the query rows is drawn at random. For those rows alone the denominator of dense attention is
computed beside that of the method. The means are unbiased, since each row has the same chance, whatever it keeps.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dynattn.functional import attention
from dynattn.integrations.transformers.calls import Call, observing, replacing
from dynattn.integrations.transformers.coverage import PREFIX, coverage
from dynattn.methods import NM, Method, PairMethod
from dynattn.reference import pairs as reference

_DENSE = NM(1, 1)
_RUN = 16  # rows drawn together where a method looks at positions, since it can choose for adjacent rows only


class Loss(NamedTuple):
    """A layer that keeps less than the limit.

    Attributes:
        layer: the name of its attention module.
        kept_mass: the mean over the rows seen so far.
        rows: how many rows were seen.
    """

    layer: str
    kept_mass: float
    rows: int


class Audit:
    """The results of :func:`audit` so far. Layers are named by their attention modules.

    A row is one query of one head. Rows that may attend to nothing, padding, are not counted, nor are calls that keep
    everything.
    """

    def __init__(
        self, names: dict[nn.Module, str], share: float, seed: int, limit: float | None,
        on_loss: Callable[[Loss], Any] | None,
    ) -> None:  # fmt: skip
        self._names, self._share, self._limit, self._on_loss = names, share, limit, on_loss
        self._lock = threading.Lock()
        self._draws = {name: torch.Generator().manual_seed(seed + i) for i, name in enumerate(names.values())}
        self._sums = dict.fromkeys(names.values(), 0.0)
        self._rows = dict.fromkeys(names.values(), 0)
        self._told: set[str] = set()
        self._dense: set[str] = set()

    @property
    def kept_mass(self) -> dict[str, float]:
        """The mean so far of every layer of which a row was seen, in the model's order."""
        with self._lock:
            return {name: self._sums[name] / rows for name, rows in self._rows.items() if rows}

    @property
    def rows(self) -> dict[str, int]:
        """How many rows of each layer were seen."""
        with self._lock:
            return dict(self._rows)

    @property
    def dense(self) -> tuple[str, ...]:
        """The layers that fell below the limit and attend densely since."""
        with self._lock:
            return tuple(name for name in self._rows if name in self._dense)

    def _replace(self, module: nn.Module, method: Method) -> Method:
        return _DENSE if self._names.get(module) in self._dense else method

    @torch.no_grad()
    def _see(self, call: Call) -> None:
        name = self._names.get(call.module)
        if name is None:
            return
        if call.query.numel() == 0 or call.key.shape[2] == 0:
            return
        for part in call.by_method(lambda method: not method.keeps_everything):
            if not isinstance(part.method, PairMethod):
                raise ValueError(
                    f"audit: a method must keep pairs to have a kept mass: got {part.method.name} in {name}; leave "
                    "audit() out for this model"
                )
            masses = _kept_masses(part, part.method, lambda count: self._drawn(name, count))
            if masses.numel():
                self._add(name, masses)

    def _drawn(self, name: str, count: int) -> list[int]:
        """Draw which of ``count`` rows are seen; each row has the same chance."""
        with self._lock:
            drawn = torch.rand(count, generator=self._draws[name], dtype=torch.float64, device="cpu")
        return (drawn < self._share).nonzero().flatten().tolist()

    def _add(self, name: str, masses: Tensor) -> None:
        total = float(masses.double().sum())
        with self._lock:
            self._sums[name] += total
            self._rows[name] += masses.numel()
            mean, rows = self._sums[name] / self._rows[name], self._rows[name]
            if self._limit is None or mean >= self._limit or name in self._told:  # NaN counts as below the limit
                return
            self._told.add(name)
        if self._on_loss is None:
            warnings.warn(
                f"audit: {name} keeps {mean:.3f} of its attention weights (mean of {rows} rows), below the limit of "
                f"{self._limit:g}; it attends densely from its next call on",
                stacklevel=2,
            )
        elif self._on_loss(Loss(name, mean, rows)) is False:
            return
        with self._lock:
            self._dense.add(name)


@contextmanager
def audit(
    model: nn.Module,
    share: float = 0.01,
    *,
    seed: int = 0,
    limit: float | None = None,
    on_loss: Callable[[Loss], Any] | None = None,
) -> Iterator[Audit]:
    """While active, the kept mass of a few rows of every call that the model makes is computed exactly.

    Rows are drawn by position, for all samples and heads at once, anew in every call. Where each query chooses by
    itself and looks at no position (N:M without a window, top-k, thresholds, mass), those rows go once more through
    :func:`dynattn.attention`, with the certificate: it costs about ``share`` of the call. Of other methods adjacent
    rows are drawn together: runs of 16, or for methods that choose whole blocks of queries (block top-k, block mass)
    blocks as the method cuts them. In causal attention they go through :func:`dynattn.attention` as well; without,
    they are computed by the definition in plain PyTorch.

    What a call computes stays as it is, unless a limit is given: a layer whose mean falls below it attends densely from
    its next call on, until the end of the audit.

    Several threads may run the model. Under ``torch.compile`` the audit breaks the graph.

    Args:
        model: a Transformers model that attends by ``dynattn:…``; its calls alone are seen.
        share: the share of the rows, above 0 and at most 1.
        seed: the seed of the draw, at least 0 and below 2**63. One thread draws the same rows of the same calls.
        limit: the limit of a layer's mean kept mass, above 0 and at most 1; None for none.
        on_loss: is called with a :class:`Loss` when a layer falls below the limit, once for the layer, in place of a
            warning; the layer stays as it is where it returns False.

    Yields:
        The :class:`Audit`, which goes on with every call and can be read at any time, after the end too.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range, ``on_loss`` comes without a limit, or the model does not attend by
            dynattn. In the model's call: a method keeps no pairs.
    """
    _check(model, share, seed, limit, on_loss)
    parts = {part.name for part in coverage(model).taking_part}
    if not parts:
        raise ValueError(
            f"audit: the model must attend by dynattn: {type(model).__name__} does not; call "
            f"model.set_attn_implementation('{PREFIX}mass-0.95') first, or another method"
        )
    names = {module: name for name, module in model.named_modules() if name in parts}
    found = Audit(names, float(share), seed, limit, on_loss)
    see = cast(Callable[[Call], None], torch.compiler.disable(found._see))
    with replacing(found._replace), observing(see):
        yield found


def _check(model: nn.Module, share: float, seed: int, limit: float | None, on_loss: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"audit: model must be a module: got {type(model).__name__}; pass the model itself")
    if not _is_number(share) or not (limit is None or _is_number(limit)):
        which, value = ("share", share) if not _is_number(share) else ("limit", limit)
        raise TypeError(f"audit: {which} must be a number: got {value!r}; try 0.01 for a share, 0.9 for a limit")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"audit: seed must be an int: got {seed!r}; pass a whole number")
    if on_loss is not None and not callable(on_loss):
        raise TypeError(f"audit: on_loss must be a function: got {on_loss!r}; it is called with what was lost")
    if not 0 < share <= 1:
        raise ValueError(f"audit: share must be above 0 and at most 1: got {share}; 0.01 sees one row in a hundred")
    if limit is not None and not 0 < limit <= 1:
        raise ValueError(f"audit: limit must be above 0 and at most 1: got {limit}; try 0.9, or None for none")
    if not 0 <= seed < 2**63:
        raise ValueError(f"audit: seed must be at least 0 and below 2**63: got {seed}")
    if on_loss is not None and limit is None:
        raise ValueError("audit: on_loss needs a limit, below which it is called: got None; try limit=0.9")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kept_masses(call: Call, method: PairMethod, draw: Callable[[int], list[int]]) -> Tensor:
    """The kept masses of the rows drawn, without rows that may attend to nothing, in one dimension."""
    together, q_len = method.rows_together, call.query.shape[2]
    if together == 1 and not method.looks_at_positions:
        rows = draw(q_len)
        return _of_rows(call, method, torch.tensor(rows, device=call.query.device)) if rows else call.query.new_empty(0)
    run = together * math.ceil(_RUN / together)
    runs = [range(i * run, min((i + 1) * run, q_len)) for i in draw(math.ceil(q_len / run))]
    return torch.cat([_of_run(call, method, rows) for rows in runs]) if runs else call.query.new_empty(0)


def _of_rows(call: Call, method: PairMethod, rows: Tensor) -> Tensor:
    """The kept masses of rows at any places, for a method whose rows each choose by themselves."""
    mask, q_len, kv_len = _mask_of(call, rows), call.query.shape[2], call.key.shape[2]
    if call.causal:
        open_keys = torch.arange(kv_len, device=rows.device) <= (rows + kv_len - q_len).unsqueeze(-1)
        if mask is None:
            mask = open_keys
        else:
            mask = mask & open_keys if mask.dtype == torch.bool else mask.masked_fill(~open_keys, -torch.inf)
    return _certified(call, method, call.query.index_select(2, rows), kv_len, mask, causal=False)


def _of_run(call: Call, method: PairMethod, rows: range) -> Tensor:
    """The kept masses of adjacent rows, which begin where the method may cut."""
    offset = call.key.shape[2] - call.query.shape[2] + rows.start
    mask = _mask_of(call, torch.arange(rows.start, rows.stop, device=call.query.device))
    query = call.query[:, :, rows.start : rows.stop]
    if call.causal and offset >= 0:  # the last queries of a shorter text
        seen = offset + len(rows)
        return _certified(call, method, query, seen, mask if mask is None else mask[..., :seen], causal=True)
    with torch.autocast(call.query.device.type, enabled=False):
        found = reference.forward(query, call.key, call.value, method, mask, call.causal, call.scale, offset=offset)
    return found.kept_mass[found.allowed > 0]


def _mask_of(call: Call, rows: Tensor) -> Tensor | None:
    mask = call.attn_mask
    return mask.index_select(-2, rows) if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1 else mask


def _certified(
    call: Call, method: PairMethod, query: Tensor, seen: int, mask: Tensor | None, causal: bool
) -> Tensor:  # fmt: skip
    """The kept masses of these queries by :func:`dynattn.attention` to the first ``seen`` keys."""
    value = call.value[:, :, :seen, :1]  # the least that a call multiplies
    _, aux = attention(
        query, call.key[:, :, :seen], value, method, attn_mask=mask, causal=causal, scale=call.scale, return_aux=True
    )
    emptied = (aux.logsumexp == -torch.inf) & (aux.kept_mass == 1)  # nothing was lost where nothing was allowed
    return aux.kept_mass[~emptied]
