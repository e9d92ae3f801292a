"""One query to keys in slots, of which heads hold different numbers: against the products, head by head."""

from __future__ import annotations

import pytest
import torch

from dynattn.ops.one_query import kernel_runs, ragged_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("group", "head_dim", "value_dim"), [(1, 16, 16), (3, 20, 12), (8, 64, 80)])
def test_slots_are_read_from_the_first_to_the_last_and_no_other(
    dtype: torch.dtype, group: int, head_dim: int, value_dim: int
) -> None:
    """Two samples of three key heads, with NaN in all slots that hold nothing; a head may hold a single key. Calls
    that differ in what a prepared call holds, and in what it does not, follow each other."""
    generator = torch.Generator().manual_seed(group)
    some, others = torch.tensor([[0, 7, 38], [20, 0, 19]]), torch.tensor([[3, 0, 1], [0, 39, 5]])
    tolerance = {torch.float32: 1e-5}.get(dtype, 2e-2)
    for first, held, room, scale in (
        (some, 39, 50, 0.3),
        (some, 40, 50, 0.3),
        (others, 40, 50, 0.5),
        (some, 41, 44, 0.3),
    ):
        query = torch.randn(2, 1, 3 * group, head_dim, generator=generator).to(dtype).transpose(1, 2)
        key, value = (torch.randn(2, 3, room, size, generator=generator).to(dtype) for size in (head_dim, value_dim))
        slots = torch.arange(room)
        empty = (slots < first.unsqueeze(-1)) | (slots >= held)
        key, value = (x.masked_fill(empty.unsqueeze(-1), torch.nan) for x in (key, value))
        assert kernel_runs(query, key, value)
        out = ragged_attention(query, key, value, tuple(first.flatten().tolist()), held, scale)
        assert out.dtype == dtype
        for b in range(2):
            for head in range(3 * group):
                k, v = (x[b, head // group, first[b, head // group] : held].double() for x in (key, value))
                weights = (scale * k @ query[b, head, 0].double()).softmax(0)
                torch.testing.assert_close(out[b, head, 0].double(), weights @ v, rtol=tolerance, atol=tolerance)


def test_there_is_no_kernel_for_other_dtypes_and_graphs() -> None:
    x = torch.zeros(1, 1, 1, 8)
    assert kernel_runs(x, x, x)
    assert not kernel_runs(x.double(), x.double(), x.double())
    assert not kernel_runs(x, torch.zeros(1, 1, 1, 4096), x)
    assert not kernel_runs(x.to("meta"), x, x)
