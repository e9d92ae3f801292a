"""The fused C++ kernels: N:M attention, rows that choose by their own scores, and whole blocks of pairs, each alone or
beside a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from dynattn.backends.base import Backend, Choosing, nm_arguments, run_nm, short
from dynattn.backends.problem import Call, Problem, Result
from dynattn.kernels import cpu
from dynattn.kernels.cpu import isas
from dynattn.kernels.pattern import Pattern
from dynattn.methods.base import Choice, Method, PairMethod
from dynattn.methods.block_skip import BlockSkip
from dynattn.methods.nm import NM
from dynattn.ops import blocks, rows
from dynattn.ops.arguments import nm_isa, row_isa
from dynattn.ops.blocks import block_attention
from dynattn.ops.library import unobserved
from dynattn.ops.nm import forward_cpu
from dynattn.ops.rows import row_attention

_PRODUCTS = {3: "six", 2: "three", 1: "one"}  # by the parts of a number
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DENSE = NM(1, 1)


class CPU(Backend):
    """The kernels of one instruction set, or of the best that the processor runs.

    Args:
        isa: ``avx512``, ``avx2``, ``neon`` or ``portable``; None for the best.
    """

    def __init__(self, isa: str | None = None) -> None:
        self._isa = isa
        self.name = "cpu" if isa is None else f"cpu-{isa}"

    def cannot(self, problem: Problem) -> str | None:
        method = problem.method
        if method.choice not in (Choice.GROUPS, Choice.ROWS, Choice.BLOCKS, Choice.SKIPS):
            return (
                "its kernels compute N:M attention, top-k, thresholds, mass and large blocks, and "
                f"{method.known_as} is another method"
            )
        if problem.mask_by_query and not _takes_any_mask(method):
            return "this choice of blocks is made only under a mask that is bool and the same for all queries"
        if method.choice is not Choice.GROUPS and problem.mask_needs_grad:
            made = "rows or blocks are chosen by their scores, or N:M stands beside a window"
            return f"the gradient of a mask is not made where {made}"
        if problem.device.type != "cpu":
            return f"tensors are on {problem.device}"
        if problem.dtype not in _DTYPES:
            return f"the kernels take float32, bfloat16 and float16, not {short(problem.dtype)}"
        for which, size in (("head_dim", problem.head_dim), ("value_dim", problem.value_dim)):
            if size > cpu.MAX_HEAD_DIM:
                return f"the kernels take a {which} of at most {cpu.MAX_HEAD_DIM}, not {size}"
        if torch.compiler.is_compiling():
            return None
        return cpu.unavailable_reason() if self._isa is None else isas.isa_refusal(self._isa)

    def what(self, problem: Problem) -> str:
        what = f"fused C++ kernel ({self._named(problem)}{self._parts(problem)})"
        if problem.method.choice is Choice.ROWS:
            tiles = self._isa_of_rows(problem) in isas.TILE_ENGINES
            read = "zeros in place of dropped weights" if tiles else "values of the kept ones read"
            what = f"{what}, all pairs scored, {read}"
        if problem.method.choice is Choice.SKIPS:
            chosen = _chooses_blocks(problem.method)
            scored = "dropped blocks skipped, the others scored" if chosen else "all pairs scored"
            return f"{what}, {scored}, the rest of what is small skipped"
        if problem.method.choice is Choice.BLOCKS:
            inside, blocks = cast(PairMethod, problem.method).inside_blocks, _chooses_blocks(problem.method)
            what = f"{what}, dropped blocks skipped" if blocks else what
            what += f", {inside.known_as}{' in the kept ones' if blocks else ''}" if inside else ""
        return f"{what}{_beside(problem.method)}"

    def _named(self, problem: Problem) -> str:
        """The instruction set and, for bfloat16, why it is not one of the matrix units."""
        if self._isa is not None:
            return f"{self._isa}{_doubt(self._isa)}" if isinstance(self, Tiles) else self._isa
        rows = problem.method.choice is Choice.ROWS
        isa = self._isa_of_rows(problem) if rows else isas.nm_isa(problem.dtype, problem.q_len)
        if problem.dtype != torch.bfloat16 or isa == isas.tile_isa():
            return isa
        unit = isas.tile_engine() or "amx"
        return f"{isa}; not {unit}: {isas.isa_refusal(unit) or _no_tiles(problem) or _not_taken(unit, problem)}"

    def _isa_of_rows(self, problem: Problem) -> str:
        """The instruction set where rows choose by their own scores."""
        if self._isa is not None:
            return self._isa
        method = cast(PairMethod, problem.method)
        if _more_than_output(problem) or method.beside_window:
            return isas.best_isa()
        return isas.row_isa(problem.dtype, problem.q_len, problem.kv_len, method.row_rule())

    def _parts(self, problem: Problem) -> str:
        """How a tile engine takes float32."""
        if not isinstance(self, Tiles) or problem.dtype != torch.float32 or torch.compiler.is_compiling():
            return ""
        return f"; float32 by bfloat16 parts, {_PRODUCTS[isas.float_parts()]} products for one"

    def kernel(self, call: Call) -> tuple[Pattern, str] | None:
        if call.method.choice is not Choice.GROUPS or self._by_parts(call):
            return None
        return Pattern.of(cast(NM, call.method), call.causal, call.scale), nm_isa(self.name, call.query)

    def choosing_kernel(self, call: Call) -> Choosing | None:
        method = cast(PairMethod, call.method)
        if call.needs_grad or self._by_parts(call) or _skips_in_blocks(method) or method.beside_window:
            return None
        pattern = Pattern.of(_DENSE, call.causal, call.scale)
        if method.choice is Choice.ROWS:
            rule = method.row_rule()
            return Choosing(rule, pattern, row_isa(self.name, call.query, call.key, rule))
        isa = nm_isa(self.name, call.query)
        if method.choice is Choice.SKIPS:
            return Choosing(cast(BlockSkip, method).margin, pattern, isa)
        rule = method.block_rule() if method.choice is Choice.BLOCKS else None
        return None if rule is None else Choosing(rule, pattern, isa)

    def _by_parts(self, call: Call) -> bool:
        """Whether a number is taken as several, and how many may change between calls."""
        return isinstance(self, Tiles) and call.query.dtype == torch.float32

    def settled(self, call: Call) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None:
        if call.method.choice is Choice.GROUPS:
            return None
        none = cast(Any, None)
        of = call._replace(query=none, key=none, value=none, attn_mask=None)
        return lambda query, key, value, attn_mask: (
            self.run(of._replace(query=query, key=key, value=value, attn_mask=attn_mask)).out
        )

    def run(self, call: Call) -> Result:
        if call.method.choice is Choice.GROUPS:
            if not call.needs_grad and unobserved(*call[:4]):
                return Result(*forward_cpu(*nm_arguments(call, self.name)))
            return run_nm(call, self.name)
        options = (*call.tensors, call.method.known_as, call.causal, call.scale, call.dropout_p, call.aux)
        alone = not call.needs_grad and unobserved(*call[:4])
        if call.method.choice is Choice.ROWS:
            return Result(*(rows.forward_cpu(*options, self.name) if alone else row_attention(*options, self.name)[:5]))
        return Result(*(blocks.forward_cpu if alone else block_attention)(*options, call.needs_grad, self.name)[:5])


class Tiles(CPU):
    """The kernels on one tile engine, which ``cpu`` takes by itself where it is the fastest.

    Args:
        isa: ``amx``, ``avx512bf16`` or ``tiles-portable``.
    """

    def __init__(self, isa: str) -> None:
        super().__init__(isa)

    def cannot(self, problem: Problem) -> str | None:
        if problem.method.choice is Choice.SKIPS and problem.dtype != torch.bfloat16:
            return f"tiles skip by maxima in bfloat16, not {short(problem.dtype)}"
        if problem.method.choice is Choice.ROWS and problem.dtype != torch.bfloat16:
            return f"tiles choose rows in bfloat16, not {short(problem.dtype)}"
        if problem.method.choice in (Choice.GROUPS, Choice.BLOCKS):
            if problem.dtype not in (torch.bfloat16, torch.float32):
                return f"tiles take bfloat16 and float32, not {short(problem.dtype)}"
            if problem.dtype == torch.float32 and self._isa == "avx512bf16":
                return "six products of bfloat16 for one of float32 take longer there than the AVX-512 kernel"
            if problem.dtype == torch.float32 and (problem.needs_grad or problem.dropout):
                return f"tiles compute float32 without {'gradients' if problem.needs_grad else 'dropout'}"
        return super().cannot(problem) or _no_tiles(problem)


def _takes_any_mask(method: Method) -> bool:
    """Whether no blocks are chosen, or by kernels, which know masks of all kinds."""
    chosen = cast(PairMethod, method).scored if method.choice is Choice.SKIPS else method
    return chosen is None or not _chooses_blocks(chosen) or cast(PairMethod, chosen).block_rule() is not None


def _chooses_blocks(method: Method) -> bool:
    """Whether whole blocks are chosen before anything is scored: what is kept, or what maxima then skip some of."""
    if method.choice is Choice.BLOCKS:
        return cast(PairMethod, method).whole_blocks != 0
    return _skips_in_blocks(method)


def _skips_in_blocks(method: Method) -> bool:
    """Whether another method chooses the blocks that are scored, and maxima skip some of these."""
    return method.choice is Choice.SKIPS and cast(PairMethod, method).scored is not None


def _beside(method: Method) -> str:
    """What becomes of pairs for where they stand."""
    if not cast(PairMethod, method).beside_window:
        return ""
    return ", a window joined" if cast(PairMethod, method).within is None else ", cut by a window"


def _doubt(engine: str) -> str:
    """What to say of an engine that is asked for by name and has failed its check on this processor."""
    found = isas.tile_disagreement(engine)
    return "" if found is None else f", whose results are not right on this processor: {found}"


def _not_taken(engine: str, problem: Problem) -> str:
    """Why ``cpu`` does not take an engine for a problem that it would compute."""
    found = isas.tile_disagreement(engine)
    if found is not None:
        return f"its results are not right on this processor: {found}; backend='cpu-{engine}' runs it all the same"
    if problem.method.choice is Choice.ROWS and isas.nm_isa(problem.dtype, problem.q_len) == engine:
        return "the few values that long rows keep by rank are listed"
    return "few queries read keys in place"


def _more_than_output(problem: Problem) -> bool:
    """Whether gradients, dropout or the certificate are asked for."""
    return problem.needs_grad or problem.dropout or problem.aux


def _no_tiles(problem: Problem) -> str | None:
    """Why the tile kernels do not compute a problem in bfloat16; None where they do."""
    if problem.method.choice is not Choice.ROWS:
        return None
    if _more_than_output(problem):
        return "tiles choose rows for the output alone, without gradients, dropout and certificate"
    if cast(PairMethod, problem.method).beside_window:
        return "tiles choose rows without a window beside them"
    return None
