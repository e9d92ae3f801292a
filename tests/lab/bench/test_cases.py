"""FLOPs and bytes by hand, and the inputs' promise that scores are exact."""

from __future__ import annotations

import pytest
import torch

from dynattn.lab.bench.cases import Case, Workload
from dynattn.methods import NM
from dynattn.methods.nm import choose
from dynattn.reference import pairs as reference


def test_dense_by_hand():
    case = Case(Workload(batch=2, heads=3, q_len=4, head_dim=8), NM(1, 1))
    # 6 heads · 16 pairs · (8 + 8 multiply-adds) · 2
    assert case.flops == case.dense_flops == 6 * 16 * 16 * 2
    # 4 tensors of 2 · 3 · 4 · 8 elements of 4 bytes
    assert case.bytes == 4 * 192 * 4
    assert case.intensity == 3072 / 3072


def test_half_of_the_weights_is_three_quarters_of_the_work():
    case = Case(Workload(heads=1, q_len=8, head_dim=16), NM(1, 2))
    assert case.dense_flops == 64 * 64
    assert case.flops == 0.75 * case.dense_flops


def test_causal_by_hand():
    # rows allow 1, 2, 3, 4, 5 keys: 15 pairs; 2:4 keeps 1, 2, 2, 2, 3 of them: 10
    case = Case(Workload(heads=1, q_len=5, head_dim=8, causal=True), NM(2, 4))
    assert case.dense_flops == 15 * 4 * 8
    assert case.flops == (15 + 10) * 2 * 8


def test_grouped_decode_by_hand():
    workload = Workload(batch=2, heads=4, kv_heads=2, q_len=1, kv_len=10, head_dim=8, dtype="bfloat16")
    assert workload.dense_flops == 2 * 4 * 10 * 4 * 8
    # query and output: 2 · 4 · 1 · 8 elements each; key and value: 2 · 2 · 10 · 8 each; 2 bytes
    assert workload.bytes == (2 * 64 + 2 * 320) * 2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4), NM(3, 8), NM(1, 1), NM(1, 2, stride=3), NM(2, 3, stride=5)])
def test_kept_pairs_are_what_the_definition_keeps(method, causal):
    workload = Workload(heads=1, q_len=21, head_dim=8, causal=causal)
    query, key, _ = workload.inputs()
    scores = reference.scores(query, key, None, causal, 1.0, 0)
    assert workload.kept_pairs(method) == choose(scores, method).sum().item()
    assert workload.pairs == (scores != -torch.inf).sum().item()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "sinks"), [(4, 0), (0, 3), (4, 3), (50, 3), (4, 50)])
def test_band_keeps_its_pairs_and_half_of_the_others(window, sinks, causal):
    length = 32
    workload = Workload(heads=1, q_len=length, head_dim=8, causal=causal)
    i, j = torch.meshgrid(torch.arange(length), torch.arange(length), indexing="ij")
    band = ((i - j).abs() < window) | (j < sinks)
    allowed = j <= i if causal else torch.ones_like(band)
    kept = workload.kept_pairs(NM(1, 2))
    assert workload.kept_pairs(NM(1, 2, window, sinks)) == kept + 0.5 * (band & allowed).sum().item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "tf32"])
def test_scores_of_the_inputs_are_exact(dtype):
    query, key, _ = Workload(heads=2, q_len=50, head_dim=128, dtype=dtype).inputs()
    exact = query.double() @ key.double().mT
    assert torch.equal((query.float() @ key.float().mT).double(), exact)
    backwards = (query.float().flip(-1) @ key.float().flip(-1).mT).double()
    assert torch.equal(backwards, exact)
    assert 0.8 < query.float().std() < 1.2


def test_layouts_hold_the_same_shape():
    plain = Workload(heads=2, q_len=5, head_dim=8).inputs()
    transposed = Workload(heads=2, q_len=5, head_dim=8, layout="blhd").inputs()
    assert [x.shape for x in plain] == [x.shape for x in transposed]
    assert all(x.is_contiguous() for x in plain)
    assert all(x.transpose(1, 2).is_contiguous() for x in transposed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, "positive"),
        ({"heads": 4, "kv_heads": 3}, "multiple"),
        ({"dtype": "float64"}, "dtype"),
        ({"layout": "lbhd"}, "layout"),
        ({"kv_len": 9, "causal": True}, "aligns otherwise"),
    ],
)
def test_bad_workloads(arguments, message):
    with pytest.raises(ValueError, match=message):
        Workload(**{"heads": 2, "q_len": 8, "head_dim": 8, **arguments})
