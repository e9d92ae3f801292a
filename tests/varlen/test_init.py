"""``dynattn.varlen_attention`` against ``dynattn.attention`` on each text, and what bad input gets."""

import contextlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import pad, scaled_dot_product_attention

import dynattn
from dynattn import NM, attention, varlen_attention
from dynattn.methods import parse

LENGTHS = [7, 0, 64, 1, 33]
METHODS = [
    "dense", "nm-1-2", "nm-2-4-x16-w4-s2", "topk-0.25", "threshold-0.01", "mass-0.9", "window-8-s2",
    "blocktopk-0.5-b16", "perhead(2*nm-1-2_2*dense)", "perhead(2*blockskip-0.5-in(blocktopk-0.5-b16)_2*blockskip-0.5)",
]  # fmt: skip


def bounds(lengths: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
    return pad(torch.tensor(lengths, dtype=dtype).cumsum(0, dtype=dtype), (1, 0))


def packed(
    lengths: list[int], heads: int = 4, kv_heads: int = 2, head_dim: int = 16, value_dim: int = 24, seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    sizes = ((heads, head_dim), (kv_heads, head_dim), (kv_heads, value_dim))
    query, key, value = (torch.randn(sum(lengths), *size, generator=generator).to(dtype) for size in sizes)
    return query, key, value


def one(x: Tensor, start: int, end: int) -> Tensor:
    """A text of a packed tensor, as attention takes it."""
    return x[start:end].transpose(0, 1).unsqueeze(0)


def by_text(
    tensors: tuple[Tensor, ...], lengths: list[int], method: str, k_lengths: list[int] | None = None, **options
):
    """What attention gives for each text, packed."""
    ends, k_ends = bounds(lengths).tolist(), bounds(k_lengths or lengths).tolist()
    outs = []
    for i in range(len(lengths)):
        query = one(tensors[0], ends[i], ends[i + 1])
        key, value = (one(x, k_ends[i], k_ends[i + 1]) for x in tensors[1:])
        outs.append(attention(query, key, value, parse(method), **options)[0].transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_each_text_is_what_attention_gives_for_it(method: str, dtype: torch.dtype, causal: bool) -> None:
    tensors = packed(LENGTHS, dtype=dtype)
    got = varlen_attention(*tensors, parse(method), cu_seq_q=bounds(LENGTHS), causal=causal)
    assert torch.equal(got, by_text(tensors, LENGTHS, method, causal=causal))


def test_queries_and_keys_may_differ_in_number() -> None:
    q_lengths, k_lengths = [3, 5, 0, 1], [9, 5, 4, 30]
    query, key, value = packed(q_lengths)[0], *packed(k_lengths, seed=1)[1:]
    got = varlen_attention(
        query, key, value, cu_seq_q=bounds(q_lengths), cu_seq_k=bounds(k_lengths), max_q=5, max_k=30, causal=True,
        scale=0.3,
    )  # fmt: skip
    assert torch.equal(got, by_text((query, key, value), q_lengths, "nm-2-4", k_lengths, causal=True, scale=0.3))


@pytest.mark.parametrize("method", ["dense", "nm-1-2", "topk-0.25"])
def test_gradients_are_those_of_each_text(method: str) -> None:
    tensors = packed(LENGTHS)
    for x in tensors:
        x.requires_grad_()
    weights = torch.randn(sum(LENGTHS), 4, 24, generator=torch.Generator().manual_seed(3))
    expected = torch.autograd.grad((by_text(tensors, LENGTHS, method, causal=True) * weights).sum(), tensors)
    out = varlen_attention(*tensors, parse(method), cu_seq_q=bounds(LENGTHS), causal=True)
    for got, right in zip(torch.autograd.grad((out * weights).sum(), tensors), expected, strict=True):
        assert torch.equal(got, right)


def test_dense_equals_sdpa_on_the_padded_batch() -> None:
    lengths = [5, 12, 1]
    tensors = packed(lengths, kv_heads=4)
    query, key, value = (torch.nn.utils.rnn.pad_sequence(list(x.split(lengths)), True).transpose(1, 2) for x in tensors)
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    dense = scaled_dot_product_attention(query, key, value, mask[:, None, None]).transpose(1, 2)[mask]
    got = varlen_attention(*tensors, NM(1, 1), cu_seq_q=bounds(lengths, torch.int64))
    torch.testing.assert_close(got, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 0), (2, 1), (-1, 2), (4, -1), (-1, -1), (-1, 0)])
def test_a_window_counts_from_the_querys_own_place(left: int, right: int) -> None:
    q_lengths, k_lengths = [6, 4], [6, 9]
    query, key, value = packed(q_lengths)[0], *packed(k_lengths, seed=1)[1:]
    got = varlen_attention(
        query, key, value, NM(1, 1), cu_seq_q=bounds(q_lengths), cu_seq_k=bounds(k_lengths), window_size=(left, right)
    )
    expected = []
    for (q0, q1), (k0, k1) in (((0, 6), (0, 6)), ((6, 10), (6, 15))):
        seen = torch.zeros(q1 - q0, k1 - k0, dtype=torch.bool)
        for i in range(q1 - q0):
            for j in range(k1 - k0):
                place = i + (k1 - k0) - (q1 - q0)
                seen[i, j] = (left < 0 or j >= place - left) and (right < 0 or j <= place + right)
        parts = one(query, q0, q1), one(key, k0, k1), one(value, k0, k1)
        expected.append(attention(*parts, NM(1, 1), attn_mask=seen)[0].transpose(0, 1))
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-5, atol=1e-6)


def test_jagged_tensors_bring_their_own_bounds() -> None:
    lengths = [4, 9, 2]
    tensors = packed(lengths)
    query, key, value = (torch.nested.nested_tensor(list(x.split(lengths)), layout=torch.jagged) for x in tensors)
    out: Any = varlen_attention(query, key, value, causal=True)
    assert out.is_nested
    assert torch.equal(out.offsets(), bounds(lengths, torch.int64))
    assert torch.equal(out.values(), varlen_attention(*tensors, cu_seq_q=bounds(lengths), causal=True))
    for x in (query, key, value):
        x.requires_grad_()
    varlen_attention(query, key, value, causal=True).values().sum().backward()
    assert all(x.grad is not None and x.grad.is_nested for x in (query, key, value))


def in_pages(x: Tensor, lengths: list[int], size: int) -> tuple[Tensor, Tensor]:
    """A pool of pages in no order, NaN where nothing lies, and the table that finds each text's."""
    most = max(-(-length // size) for length in lengths)
    table = torch.randperm(len(lengths) * most, generator=torch.Generator().manual_seed(5)).view(len(lengths), most)
    pool = torch.full((table.numel(), size, *x.shape[1:]), math.nan, dtype=x.dtype)
    for row, text in zip(table, x.split(lengths), strict=True):
        for page, part in zip(row, text.split(size), strict=False):
            pool[page, : len(part)] = part
    return pool, table.int()


def test_keys_in_pages() -> None:
    q_lengths, k_lengths = [1, 4, 1, 2], [5, 40, 16, 2]
    query, key, value = packed(q_lengths)[0], *packed(k_lengths, seed=1)[1:]
    (keys, table), (values, _) = (in_pages(x, k_lengths, 16) for x in (key, value))
    table[0, 1:] = -1  # behind a text's last page anything may stand
    got = varlen_attention(
        query, keys, values, cu_seq_q=bounds(q_lengths), seqused_k=torch.tensor(k_lengths), block_table=table,
        causal=True,
    )  # fmt: skip
    assert torch.equal(got, by_text((query, key, value), q_lengths, "nm-2-4", k_lengths, causal=True))


def test_keys_that_are_not_used_do_not_take_part() -> None:
    q_lengths, slots, used = [1, 2], [10, 12], [3, 12]
    query, key, value = packed(q_lengths)[0], *packed(slots, seed=1)[1:]
    key[3:10], value[3:10] = math.nan, math.nan
    got = varlen_attention(
        query, key, value, cu_seq_q=bounds(q_lengths), cu_seq_k=bounds(slots), seqused_k=torch.tensor(used), causal=True
    )
    kept = torch.cat([torch.arange(3), torch.arange(10, 22)])
    assert torch.equal(got, by_text((query, key[kept], value[kept]), q_lengths, "nm-2-4", used, causal=True))


def test_dropout_is_the_seeds_and_differs_between_texts() -> None:
    lengths = [32, 32]
    query, key, value = (torch.cat([x, x]) for x in packed([32]))
    options: dict[str, Any] = {"cu_seq_q": bounds(lengths), "dropout_p": 0.5}
    out = varlen_attention(query, key, value, seed=7, **options)
    assert torch.equal(out, varlen_attention(query, key, value, seed=torch.tensor(7), **options))
    alone = attention(one(query, 0, 32), one(key, 0, 32), one(value, 0, 32), dropout_p=0.5, seed=7)
    assert torch.equal(out[:32], alone[0].transpose(0, 1))
    assert not torch.equal(out[:32], out[32:])
    torch.manual_seed(0)
    first, second = (varlen_attention(query, key, value, **options) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_certificate() -> None:
    tensors = packed(LENGTHS)
    out, aux = varlen_attention(*tensors, cu_seq_q=bounds(LENGTHS), return_aux=True)
    query, key, value = (one(x, 7, 71) for x in tensors)
    alone_out, alone = attention(query, key, value, return_aux=True)
    assert torch.equal(out[7:71], alone_out[0].transpose(0, 1))
    assert torch.equal(aux.logsumexp[7:71], alone.logsumexp[0].T)
    assert torch.equal(aux.kept_mass[7:71], alone.kept_mass[0].T)
    assert aux.density.shape == (5, 4)
    assert torch.equal(aux.density[2], alone.density[0])


def test_no_texts() -> None:
    out, aux = varlen_attention(*packed([]), cu_seq_q=torch.tensor([0]), return_aux=True)
    assert out.shape == (0, 4, 24)
    assert aux.logsumexp.shape == (0, 4)
    assert aux.density.shape == (0, 4)


def test_a_backend_asked_for_by_name_runs_or_raises() -> None:
    tensors = packed(LENGTHS)
    got = varlen_attention(*tensors, cu_seq_q=bounds(LENGTHS), backend="reference")
    torch.testing.assert_close(got, varlen_attention(*tensors, cu_seq_q=bounds(LENGTHS)), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run this"):
        varlen_attention(*tensors, cu_seq_q=bounds(LENGTHS), backend="cuda")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"cu_seq_q": None}, TypeError, "cu_seq_q must be an int32 or int64 tensor of shape .*: got None"),
        ({"cu_seq_q": torch.tensor([0.0, 8])}, TypeError, "cu_seq_q must be an int32 or int64 tensor"),
        ({"cu_seq_q": torch.tensor([1, 8])}, ValueError, "cu_seq_q must rise from 0 to the number of queries, 8"),
        ({"cu_seq_q": torch.tensor([0, 7])}, ValueError, "cu_seq_q must rise from 0"),
        ({"cu_seq_q": torch.tensor([0, 5, 3, 8])}, ValueError, "cu_seq_q must rise from 0"),
        ({"cu_seq_k": torch.tensor([0, 4, 8])}, ValueError, "cu_seq_k must count the texts of cu_seq_q: got 2 texts"),
        ({"max_q": 7}, ValueError, "max_q must be an int that no text exceeds: got 7 where the longest has 8"),
        ({"max_k": 2.5}, ValueError, "max_k must be an int"),
        ({"window_size": 3}, TypeError, "window_size must be two ints"),
        ({"window_size": (1, 2, 3)}, TypeError, "window_size must be two ints"),
        ({"seqused_k": torch.tensor([9])}, ValueError, "seqused_k must lie between 0 and the keys"),
        ({"seqused_k": torch.tensor([1, 1])}, TypeError, r"seqused_k must be .* of shape \(1,\)"),
        ({"query": torch.randn(1, 8, 4, 16)}, ValueError, r"query must be \(tokens, heads, head_dim\)"),
        ({"key": torch.randn(7, 2, 16)}, ValueError, "key and value must have the same tokens and heads"),
        ({"key": [1]}, TypeError, "key must be a tensor: got list"),
        ({"block_table": torch.tensor([[0]])}, ValueError, r"key must be \(pages, page_size, kv_heads, head_dim\)"),
        ({"query": torch.randn(8, 4, 12)}, ValueError, "head_dim must match"),
        ({"scale": math.nan}, ValueError, "scale must be finite"),
        ({"backend": None}, ValueError, "backend must be 'auto' or one of 'cpu'"),
    ],
)
def test_bad_input_gets_a_clear_error(change: dict, error: type[Exception], match: str) -> None:
    arguments: dict[str, Any] = {
        **dict(zip(("query", "key", "value"), packed([8]), strict=True)),
        "cu_seq_q": bounds([8]),
        **change,
    }
    with pytest.raises(error, match=match):
        varlen_attention(**arguments)


def test_bad_pages_get_a_clear_error() -> None:
    query, key, value = packed([2])
    (keys, table), (values, _) = (in_pages(x, [2], 16) for x in (key, value))
    options: dict[str, Any] = {"cu_seq_q": bounds([2]), "block_table": table}
    with pytest.raises(ValueError, match="block_table needs seqused_k"):
        varlen_attention(query, keys, values, **options)
    with pytest.raises(ValueError, match="what the pages of a text hold"):
        varlen_attention(query, keys, values, seqused_k=torch.tensor([17]), **options)
    with pytest.raises(ValueError, match="must name pages between 0 and 0: got \\[1\\]"):
        varlen_attention(
            query, keys, values, seqused_k=torch.tensor([2]), **{**options, "block_table": torch.tensor([[1]])}
        )
    with pytest.raises(ValueError, match="a row for each text"):
        varlen_attention(query, keys, values, seqused_k=torch.tensor([2]), **{**options, "block_table": table[:0]})
    with pytest.raises(TypeError, match="block_table must be an int32 or int64 tensor"):
        varlen_attention(query, keys, values, seqused_k=torch.tensor([2]), **{**options, "block_table": table.float()})


def test_bad_jagged_tensors_get_a_clear_error() -> None:
    query, key, value = (torch.nested.nested_tensor(list(x.split([2, 3])), layout=torch.jagged) for x in packed([2, 3]))
    with pytest.raises(TypeError, match="must all be jagged nested tensors, or none of them: value is not"):
        varlen_attention(query, key, value.values())
    with pytest.raises(TypeError, match=r"use .transpose\(1, 2\) where heads come first"):
        varlen_attention(query.transpose(1, 2), key, value)
    with pytest.raises(ValueError, match="cu_seq_q must be left out where query is jagged"):
        varlen_attention(query, key, value, cu_seq_q=bounds([2, 3]))
    other = torch.nested.nested_tensor(list(value.values().split([3, 2])), layout=torch.jagged)
    with pytest.raises(ValueError, match="jagged key and value must have the same lengths"):
        varlen_attention(query, key, other)


def test_it_is_public() -> None:
    assert dynattn.varlen_attention is varlen_attention


@pytest.mark.parametrize("fake", [False, True])
def test_shapes_alone(fake: bool) -> None:
    """On the meta device, and as fakes, whose lengths nobody can read."""
    tensors = (*packed([5, 3], dtype=torch.float64), bounds([5, 3]))
    mode: Any = FakeTensorMode() if fake else contextlib.nullcontext()
    with mode as made:
        query, key, value, cu_seq = (made.from_tensor(x) if fake else x.to("meta") for x in tensors)
        out, aux = varlen_attention(query, key, value, cu_seq_q=cu_seq, return_aux=True)
    assert (out.shape, out.dtype) == ((8, 4, 24), torch.float64)
    assert (aux.density.shape, aux.density.dtype) == ((2, 4), torch.float64)


def test_lengths_and_pages_are_plain_numbers() -> None:
    tensors, cu_seq = packed([2]), bounds([2])
    with pytest.raises(ValueError, match=r"cu_seq_q must be a plain tensor .*: it is on the meta device"):
        varlen_attention(*tensors, cu_seq_q=cu_seq.to("meta"))
    with pytest.raises(ValueError, match=r"cu_seq_q must be a plain tensor .*: it is mapped by vmap"):
        torch.func.vmap(lambda x: varlen_attention(*tensors, cu_seq_q=x))(cu_seq[None])
    with pytest.raises(ValueError, match=r"seqused_k must be a plain tensor .*: it is on the meta device"):
        varlen_attention(*tensors, cu_seq_q=cu_seq, seqused_k=torch.tensor([2], device="meta"))
    (keys, table), (values, _) = (in_pages(x, [2], 16) for x in tensors[1:])
    with pytest.raises(ValueError, match=r"block_table must be a plain tensor .*: it is on the meta device"):
        varlen_attention(
            tensors[0], keys, values, cu_seq_q=cu_seq, seqused_k=torch.tensor([2]), block_table=table.to("meta")
        )


def test_bad_input_is_refused_without_texts_too() -> None:
    query, key, value = (x.double() for x in packed([]))
    none = torch.tensor([0])
    with pytest.raises(TypeError, match="must share one dtype"):
        varlen_attention(query, key.float(), value, cu_seq_q=none)
    with pytest.raises(TypeError, match="method must be a method such as"):
        varlen_attention(query, key, value, "nm-1-2", cu_seq_q=none)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be an int of 64 bits"):
        varlen_attention(query, key, value, cu_seq_q=none, dropout_p=0.1, seed=0.5, window_size=(2, 2))  # type: ignore[arg-type]
    assert varlen_attention(query, key, value, cu_seq_q=none, return_aux=True)[1].logsumexp.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = varlen_attention(query.float(), key.float(), value.float(), cu_seq_q=none)
    assert out.dtype == torch.bfloat16


def test_pages_are_converted_by_autocast_text_by_text() -> None:
    query, key, value = packed([40, 3])
    (keys, table), (values, _) = (in_pages(x, [40, 3], 16) for x in (key, value))
    options: dict[str, Any] = {"cu_seq_q": bounds([40, 3]), "seqused_k": torch.tensor([40, 3]), "block_table": table}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = varlen_attention(query, keys, values, **options)
    assert torch.equal(out, varlen_attention(query.bfloat16(), keys.bfloat16(), values.bfloat16(), **options))


def test_a_window_beyond_every_text_limits_nothing() -> None:
    tensors = packed([40, 3])
    got = varlen_attention(*tensors, cu_seq_q=bounds([40, 3]), window_size=(2**70, 2**63))
    assert torch.equal(got, varlen_attention(*tensors, cu_seq_q=bounds([40, 3])))
