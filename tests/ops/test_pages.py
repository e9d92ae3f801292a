"""Attention to pages where they lie: by the kernel and by PyTorch, against attention to the same keys put together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynattn.maths.pages import Kept
from dynattn.ops import pages
from dynattn.ops.pages import page_attention

ROOM = 96


def case(dtype: torch.dtype, group: int, head_dim: int, value_dim: int) -> tuple[Tensor, Tensor, Tensor, Kept]:
    """Two samples of two key heads with pages of 16; what no head reads is NaN."""
    generator = torch.Generator().manual_seed(group)
    query = torch.randn(2, 2 * group, 1, head_dim, generator=generator)
    key, value = (torch.randn(2, 2, ROOM, size, generator=generator) for size in (head_dim, value_dim))
    table = torch.tensor([[[0, 2, 4], [1, 4, 4]], [[2, 3, 4], [0, 1, 4]]])
    used = torch.tensor([[35, 19], [35, 35]])  # 3 keys in the last page
    read = torch.zeros(2, 2, ROOM, dtype=torch.bool)
    for b in range(2):
        for h in range(2):
            for at, page in enumerate(table[b, h].tolist()):
                count = max(0, min(16, int(used[b, h]) - 16 * at))
                read[b, h, 16 * page : 16 * page + count] |= torch.ones(count, dtype=torch.bool)
    key, value = (x.masked_fill(~read.unsqueeze(-1), torch.nan).to(dtype) for x in (key, value))
    return query.to(dtype), key, value, Kept(table, used)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("group", "head_dim", "value_dim"), [(1, 16, 16), (3, 20, 12), (8, 64, 80)])
def test_the_pages_are_read_and_nothing_else(
    dtype: torch.dtype, group: int, head_dim: int, value_dim: int, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value, kept = case(dtype, group, head_dim, value_dim)
    assert pages._fits(query, key, value, 16)
    if not kernel:
        monkeypatch.setattr(pages, "_fits", lambda *_: False)
    out = page_attention(query, key, value, kept, 16, 0.3)
    assert out.dtype == dtype
    for b in range(2):
        for head in range(2 * group):
            h = head // group
            k, v = (x[b, h].double() for x in (key, value))
            real = ~k[:, 0].isnan()
            weights = (0.3 * k[real] @ query[b, head, 0].double()).softmax(0)
            tolerance = {torch.float32: 1e-5}.get(dtype, 2e-2)
            torch.testing.assert_close(out[b, head, 0].double(), weights @ v[real], rtol=tolerance, atol=tolerance)


def test_pages_that_kernels_cannot_read_are_gathered() -> None:
    query, key, value, _ = case(torch.float32, 1, 16, 16)
    assert not pages._fits(query, key, value, 8)
    assert not pages._fits(query.double(), key.double(), value.double(), 16)
    key, value = key.nan_to_num(1.0), value.nan_to_num(1.0)
    kept = Kept(torch.tensor([[[0, 5], [1, 5]], [[2, 5], [3, 5]]]), torch.full((2, 2), 9))
    out = page_attention(query, key, value, kept, 8, 0.3)
    index = torch.tensor([*range(8), 40])
    weights = (0.3 * key[0, 0, index] @ query[0, 0, 0]).softmax(0)
    torch.testing.assert_close(out[0, 0, 0], weights @ value[0, 0, index])
