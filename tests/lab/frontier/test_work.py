"""The account of work: pairs, FLOPs and kept mass, from what a model really does."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.account import counting
from dynattn.integrations.transformers import Call
from dynattn.lab.frontier.work import look, pairs
from dynattn.lab.models import Pretrained, load
from dynattn.methods import NM

HEADS, HEAD_DIM, HIDDEN, LAYERS = 2, 16, 32, 2  # of the tiny encoder; its feed-forward blocks are as wide


def _call(q_len: int, kv_len: int, mask: torch.Tensor | None = None, causal: bool = False) -> Call:
    query, key = torch.zeros(2, 3, q_len, 4), torch.zeros(2, 1, kv_len, 4)
    return Call(0, torch.nn.Identity(), query, key, key, NM(1, 1), mask, causal, None)


def test_pairs_are_those_that_may_be_attended():
    assert pairs(_call(5, 7)) == 6 * 35
    assert pairs(_call(5, 5, causal=True)) == 6 * 15
    assert pairs(_call(2, 5, causal=True)) == 6 * 9
    mask = torch.tensor([[True] * 4 + [False]]).view(1, 1, 1, 5)
    assert pairs(_call(3, 5, mask)) == 6 * 12
    assert pairs(_call(3, 5, torch.zeros(1, 1, 1, 5).masked_fill(~mask, -torch.inf))) == 6 * 12


def _looked(pretrained: Pretrained, method: str, length: int):
    generator = torch.Generator().manual_seed(0)
    inputs = [{"input_ids": torch.randint(0, 60, (1, length), generator=generator)} for _ in range(2)]
    return look(pretrained, method, inputs)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        *itertools.product(["tiny_encoder", "tiny_decoder"], ["dense", "nm-1-4", "nm-2-4-w8-s1", "dsa-0.5"]),
        ("tiny_encoder", "perhead(efficient_nm-1-2)"),
        ("tiny_decoder", "nm-1-2&blocktopk-0.25-b8-f0"),
        ("tiny_decoder", "perhead(3*nm-1-4_dense)"),
    ],
)
def test_the_work_is_that_of_the_account(model: str, method: str, request: pytest.FixtureRequest):
    pretrained = load(str(request.getfixturevalue(model)))
    found = _looked(pretrained, method, 48)
    pretrained.model.set_attn_implementation(f"dynattn:{method}")
    with counting(pretrained.model) as account:
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            pretrained.model(input_ids=torch.randint(0, 60, (1, 48), generator=generator))
    assert found.pairs == pytest.approx(account.attention.exponentials / 2)
    assert found.attention == pytest.approx(account.attention.multiply_adds)  # twice, of two inputs
    assert found.total == pytest.approx(account.total.multiply_adds)


def test_the_work_of_a_model_is_its_matrices_and_its_pairs(tiny_encoder: Path):
    pretrained, length = load(str(tiny_encoder)), 64
    found = _looked(pretrained, "dense", length)
    allowed = LAYERS * HEADS * length**2
    matrices = LAYERS * 2 * length * (4 * HIDDEN**2 + 2 * HIDDEN**2) + 2 * HIDDEN**2  # and the pooler
    assert found.pairs == allowed
    assert found.kept_mass == pytest.approx(1)
    assert found.attention == 2 * allowed * 2 * HEAD_DIM
    assert found.total == found.attention + matrices
    sparse = _looked(pretrained, "nm-1-4", length)
    assert sparse.pairs == allowed / 4
    assert sparse.kept_mass is not None
    assert 0.25 <= sparse.kept_mass < 1
    assert sparse.attention == 2 * (allowed + allowed / 4) * HEAD_DIM
    assert sparse.total - sparse.attention == matrices


def test_tokens_that_skip_layers_save_their_pairs_and_their_matrices(tiny_decoder: Path):
    pretrained = load(str(tiny_decoder))
    config, whole, half = pretrained.model.config, *(_looked(pretrained, name, 48) for name in ("ftp-0.0", "ftp-0.5"))
    heads = config.num_hidden_layers * config.num_attention_heads
    assert (whole.pairs, half.pairs) == (heads * 48 * 49 / 2, heads * 24 * 25 / 2)
    assert half.attention == pytest.approx(whole.attention * (24 * 25) / (48 * 49))
    head = 2 * 48 * config.hidden_size * config.vocab_size  # reads every token
    assert half.total - half.attention - head == pytest.approx((whole.total - whole.attention - head) / 2)


def test_a_model_that_makes_no_call_is_refused(tiny_encoder: Path):
    pretrained = load(str(tiny_encoder))
    pretrained.model.set_attn_implementation = lambda _: None
    with pytest.raises(ValueError, match="look: the model must call dynattn"):
        look(pretrained, "nm-1-2", [{"input_ids": torch.ones(1, 4, dtype=torch.long)}])


def test_weights_that_are_zero_are_not_counted(tiny_encoder: Path):
    pretrained, length = load(str(tiny_encoder)), 64
    dense, sparse = _looked(pretrained, "sdpa", length), _looked(pretrained, "nmweight-1-4", length)
    inside = LAYERS * 2 * length * 6 * HIDDEN**2  # the pooler stays whole
    assert dense.total - sparse.total == pytest.approx(inside * 3 / 4)
    assert (sparse.pairs, sparse.attention) == (dense.pairs, dense.attention)
    assert _looked(pretrained, "sdpa", length) == dense  # the weights are back


def test_inputs_that_are_left_out_are_not_counted(tiny_encoder: Path):
    pretrained, length = load(str(tiny_encoder)), 64
    dense, sparse = _looked(pretrained, "sdpa", length), _looked(pretrained, "nmact-1-4-norm", length)
    inside = LAYERS * 2 * length * 6 * HIDDEN**2  # the pooler stays whole
    comparisons = LAYERS * 2 * length * 4 * HIDDEN  # one for each input; queries, keys and values share theirs
    assert dense.total - sparse.total == pytest.approx(inside * 3 / 4 - comparisons)
    assert (sparse.pairs, sparse.attention) == (dense.pairs, dense.attention)
    assert _looked(pretrained, "sdpa", length) == dense  # the model is as before
