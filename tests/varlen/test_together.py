"""Texts by one call of the kernels: equal to each by itself, keys in pages read where they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dynattn import attention, varlen_attention
from dynattn.backends import again
from dynattn.kernels import cpu
from dynattn.kernels.cpu import isas
from dynattn.methods import parse
from dynattn.varlen import again as again_varlen
from dynattn.varlen import run
from tests.varlen.test_init import bounds, by_text, in_pages, packed

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="needs the compiled kernels")

Q_LENGTHS = [1, 37, 0, 6, 1, 200, 3, 13]  # few queries, many, and none; wide values make 12 few
K_LENGTHS = [700, 90, 5, 0, 1, 203, 2100, 64]
METHODS = ["dense", "nm-1-2", "nm-2-4", "nm-3-5", "nm-2-4-x16-w4-s2", "nm-1-2-w40-s3", "nm-7-31"]
HERE = isas.tile_isa() if cpu.is_available() else None
TILES = HERE or "tiles-portable"  # this processor's tile engine, or what stands in for one
KINDS = [(torch.float32, TILES), (torch.float16, TILES), (torch.bfloat16, None), (torch.bfloat16, TILES)]
SHAPES = [{"head_dim": 64, "value_dim": 64}, {"head_dim": 20, "value_dim": 12}, {"head_dim": 16, "value_dim": 80}]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed text by text."""

    def refuse(*_: Any) -> None:
        raise AssertionError("texts were cut apart")

    monkeypatch.setattr(run, "cut", refuse)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """To be filled with the numbers of the texts that are computed by themselves."""
    cut, found = run.cut, []
    monkeypatch.setattr(run, "cut", lambda *args: found.extend(args[-1]) or cut(*args))
    return found


def take(engine: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor whose tile engine this is, or that has none."""
    monkeypatch.setattr(isas, "tile_isa", lambda: engine)
    for plans in (again, again_varlen):
        monkeypatch.setattr(plans, "_plans", {})  # which know their engine


def inputs(dtype: torch.dtype = torch.float32, **shape: int) -> tuple[Tensor, Tensor, Tensor]:
    return packed(Q_LENGTHS, dtype=dtype, **shape)[0], *packed(K_LENGTHS, seed=1, dtype=dtype, **shape)[1:]


def paged(tensors: tuple[Tensor, ...], size: int, **options: Any) -> Any:
    """The call with keys in pages, of which everything unused is poisoned."""
    (keys, table), (values, _) = (in_pages(x, K_LENGTHS, size) for x in tensors[1:])
    for row, length in zip(table, K_LENGTHS, strict=True):
        row[-(-length // size) :] = 10**9
    return varlen_attention(
        tensors[0], keys, values, cu_seq_q=bounds(Q_LENGTHS), seqused_k=torch.tensor(K_LENGTHS), block_table=table,
        **options,
    )  # fmt: skip


def test_a_table_without_pages_and_pages_whose_numbers_are_large() -> None:
    query, pool = torch.randn(3, 1, 16), torch.randn(4, 16, 1, 16)
    places: dict[str, Any] = {"cu_seq_q": torch.tensor([0, 3]), "seqused_k": torch.tensor([0])}
    out = varlen_attention(query, pool, pool, **places, block_table=torch.zeros(1, 0, dtype=torch.int32))
    assert torch.equal(out, torch.zeros(3, 1, 16))
    places["seqused_k"] = torch.tensor([16])
    for page in (2**32, 2**32 + 3, -(2**32), 2**31, -1, 4):
        with pytest.raises(ValueError, match="block_table"):
            varlen_attention(query, pool, pool, **places, block_table=torch.tensor([[page]]))


def test_a_backend_by_name_is_asked_for_each_text() -> None:
    query, key, value = packed([4, 6])
    key, value = (torch.cat([x, x]) for x in (key, value))
    places: dict[str, Any] = {"cu_seq_q": bounds([4, 6]), "cu_seq_k": torch.tensor([0, 8, 20])}
    places["seqused_k"] = torch.tensor([4, 6])
    out = varlen_attention(query, key, value, parse("dense"), **places, backend="sdpa")
    torch.testing.assert_close(out, varlen_attention(query, key, value, parse("dense"), **places))


def test_meta_tensors() -> None:
    query, key, value = (x.to("meta") for x in packed([4, 6]))
    assert varlen_attention(query, key, value, cu_seq_q=bounds([4, 6])).shape == value.shape[:1] + query.shape[1:2] + (
        value.shape[-1],
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "engine"), KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_pages_and_packed_keys_give_what_each_text_gives_alone(
    method: str, dtype: torch.dtype, engine: str | None, causal: bool, apart: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All texts by one call, except for those that a tile engine computes: bfloat16, of more than 6 queries."""
    take(engine, monkeypatch)
    tiled = engine is not None and dtype == torch.bfloat16
    expected = [number for number, length in enumerate(Q_LENGTHS) if tiled and length > 6]
    for shape, size in zip(SHAPES, (16, 48, 160), strict=True):
        tensors = inputs(dtype, **shape)
        alone = by_text(tensors, Q_LENGTHS, method, K_LENGTHS, causal=causal)
        options: dict[str, Any] = {"causal": causal, "scale": None}
        together = varlen_attention(
            *tensors, parse(method), cu_seq_q=bounds(Q_LENGTHS), cu_seq_k=bounds(K_LENGTHS), **options
        )
        assert torch.equal(together, alone)
        assert torch.equal(paged(tensors, size, method=parse(method), **options), alone)
        assert apart == 2 * expected
        apart.clear()


@pytest.mark.parametrize("engine", [None, TILES])
def test_decoding_reads_pages_in_place_beside_any_engine(
    engine: str | None, apart: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    take(engine, monkeypatch)
    q_lengths, k_lengths = [1, 6, 4], [90, 700, 33]
    query, key, value = packed(q_lengths, dtype=torch.bfloat16)[0], *packed(k_lengths, seed=1, dtype=torch.bfloat16)[1:]
    (keys, table), (values, _) = (in_pages(x, k_lengths, 16) for x in (key, value))
    got = varlen_attention(
        query, keys, values, cu_seq_q=bounds(q_lengths), seqused_k=torch.tensor(k_lengths), block_table=table,
        causal=True,
    )  # fmt: skip
    assert torch.equal(got, by_text((query, key, value), q_lengths, "nm-2-4", k_lengths, causal=True))
    assert apart == []


def test_kernels_by_name_compute_all_texts_at_once_or_none(apart: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    take(TILES, monkeypatch)
    tensors = inputs(torch.bfloat16)
    for backend, expected in ((f"cpu-{cpu.best_isa()}", []), (f"cpu-{TILES}", list(range(len(Q_LENGTHS))))):
        got = paged(tensors, 16, method=parse("nm-2-4"), causal=True, backend=backend)
        assert torch.equal(got, by_text(tensors, Q_LENGTHS, "nm-2-4", K_LENGTHS, causal=True, backend=backend))
        assert apart == expected
        apart.clear()


@pytest.mark.usefixtures("at_once")
def test_the_certificate_too() -> None:
    tensors = inputs()
    out, aux = paged(tensors, 32, method=parse("nm-2-4"), causal=True, return_aux=True)
    expected, of_each = varlen_attention(
        *tensors, parse("nm-2-4"), cu_seq_q=bounds(Q_LENGTHS), cu_seq_k=bounds(K_LENGTHS), causal=True, return_aux=True
    )
    alone = by_text(tensors, Q_LENGTHS, "nm-2-4", K_LENGTHS, causal=True)
    torch.testing.assert_close(out, alone, rtol=1e-5, atol=1e-6)  # counts take another path, which rounds otherwise
    for one, other in zip((out, *aux), (expected, *of_each), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("engine", [None, TILES])
def test_the_certificate_of_each_text_comes_in_its_place(engine: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    take(engine, monkeypatch)
    tensors = inputs(torch.bfloat16)
    _, aux = paged(tensors, 32, method=parse("nm-2-4"), return_aux=True)
    query, key, value = (
        x.split(lengths) for x, lengths in zip(tensors, (Q_LENGTHS, K_LENGTHS, K_LENGTHS), strict=True)
    )
    found = [x.split(Q_LENGTHS) for x in aux[:2]]
    for number in range(len(Q_LENGTHS)):
        text = [x[number].transpose(0, 1).unsqueeze(0) for x in (query, key, value)]
        _, own = attention(text[0], text[1], text[2], parse("nm-2-4"), return_aux=True)
        for got, of_text in zip(found, own[:2], strict=True):
            assert torch.equal(got[number], of_text[0].T)
        assert torch.equal(aux.density[number], own.density[0])


@pytest.mark.usefixtures("at_once")
def test_threads_change_no_bit() -> None:
    tensors, before = inputs(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(paged(tensors, 16, method=parse("nm-1-2"), causal=True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.usefixtures("at_once")
def test_another_default_device_changes_nothing() -> None:
    tensors = inputs()
    expected = paged(tensors, 16, method=parse("nm-1-2"), causal=True)
    (keys, table), (values, _) = (in_pages(x, K_LENGTHS, 16) for x in tensors[1:])
    cu_seq, used = bounds(Q_LENGTHS), torch.tensor(K_LENGTHS)
    with torch.device("meta"):
        got = varlen_attention(
            tensors[0], keys, values, parse("nm-1-2"), cu_seq_q=cu_seq, seqused_k=used, block_table=table, causal=True
        )
    assert torch.equal(got, expected)


@pytest.mark.usefixtures("at_once")
def test_many_more_texts_than_slots_and_threads() -> None:
    lengths = [9 + i % 50 for i in range(300)]
    tensors = packed(lengths, heads=2, kv_heads=2)
    got = varlen_attention(*tensors, parse("nm-2-4"), cu_seq_q=bounds(lengths))
    assert torch.equal(got, by_text(tensors, lengths, "nm-2-4"))


@pytest.mark.usefixtures("at_once")
def test_pools_of_any_strides() -> None:
    tensors = inputs(head_dim=32, value_dim=32)
    alone = by_text(tensors, Q_LENGTHS, "dense", K_LENGTHS, causal=True)
    (keys, table), (values, _) = (in_pages(x, K_LENGTHS, 16) for x in tensors[1:])
    table[table < 0] = 0
    options: dict[str, Any] = {
        "cu_seq_q": bounds(Q_LENGTHS), "seqused_k": torch.tensor(K_LENGTHS), "block_table": table.long(),
        "causal": True,
    }  # fmt: skip
    by_heads = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (keys, values)]
    beside = torch.cat([keys, values], dim=-1)
    pool: Any
    for pool in (by_heads, beside.split(32, dim=-1), [keys.flip(-1).contiguous().flip(-1), values]):
        assert torch.equal(varlen_attention(tensors[0], pool[0], pool[1], parse("dense"), **options), alone)


@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1])
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
@pytest.mark.parametrize("engine", [None, TILES])
def test_pages_that_there_are_not_are_refused(
    engine: str | None, bad: int, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the texts it is, of which a tile engine computes the first."""
    take(engine, monkeypatch)
    query = torch.randn(8, 2, 16).bfloat16()
    pool = torch.randn(9, 16, 2, 16).bfloat16()
    table = torch.arange(6, dtype=torch.int32).view(2, 3)
    table[place] = bad
    options: dict[str, Any] = {"cu_seq_q": bounds([7, 1]), "seqused_k": torch.tensor([16, 33]), "block_table": table}
    with pytest.raises(ValueError, match=rf"block_table must name pages between 0 and 8: got \[.*{bad}.*only entries"):
        varlen_attention(query, pool, pool, **options)


def test_what_the_kernels_do_not_read_in_place_is_gathered() -> None:
    tensors = inputs()
    for size, method in ((24, "nm-2-4"), (16, "topk-0.25"), (16, "perhead(2*nm-1-2_2*dense)")):
        alone = by_text(tensors, Q_LENGTHS, method, K_LENGTHS, causal=True)
        assert torch.equal(paged(tensors, size, method=parse(method), causal=True), alone)


@pytest.mark.usefixtures("at_once")
def test_values_that_are_not_finite_stay_in_their_text() -> None:
    tensors = inputs()
    tensors[1][3], tensors[2][K_LENGTHS[0] + 2] = math.inf, math.nan
    alone = by_text(tensors, Q_LENGTHS, "nm-2-4", K_LENGTHS, causal=True)
    got = paged(tensors, 16, method=parse("nm-2-4"), causal=True)
    assert torch.equal(got.nan_to_num(7.0), alone.nan_to_num(7.0))
    assert torch.equal(got.isnan(), alone.isnan())
    assert got[-60:].isfinite().all()
