"""FTP: who runs which layer, names, what choices know, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynattn.account import counting, of_forward
from dynattn.integrations.transformers import register
from dynattn.pruning import FTP, Router, parse
from dynattn.pruning.router import RUN, SKIP
from tests.pruning.models import close
from tests.pruning.walks import LENGTHS, decoder, texts, walk, watch


def router(look_ahead: bool = False) -> Router:
    """Random weights, large enough for its choices to differ from token to token."""
    torch.manual_seed(3)
    found = Router(8, look_ahead=look_ahead)
    with torch.no_grad():
        for weight in found.parameters():
            weight.mul_(6)
        at_one = found(torch.ones(1, 13, dtype=torch.bool), torch.ones(1, 13), 0.4)
        list(found.parameters())[-1].sub_(at_one.mean((0, 1)))  # about half of the tokens run
    return found


def static(length: int, count: int) -> list[int]:
    return sorted([0, *range(length - 1, 0, -1)][:count])


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_first_token_and_the_last_ones_run(side: str) -> None:
    model, given, alive = decoder(), texts(side), texts(side)["attention_mask"].bool()
    method = FTP((0.0, 0.4, 0.75))
    with method.apply(model) as trace:
        seen = watch(model, given)
    for sample, length in enumerate(LENGTHS):
        counts = [length, -(-6 * length // 10), -(-length // 4)]
        assert trace.last.tokens[:, sample].tolist() == counts
        first = 0 if side == "right" else max(LENGTHS) - length
        expected = walk(
            model, seen[0][0][sample, alive[sample]], lambda at, n=length, of=counts: static(n, of[at]), first
        )
        close(seen[-1][1][sample, alive[sample]], expected)


@pytest.mark.parametrize("look_ahead", [True, False])
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "dynattn:nm-1-2"])
def test_a_router_judges_by_the_layer_that_a_token_ran_last(implementation: str, look_ahead: bool) -> None:
    """The walk keeps scores by hand, from the queries and keys of each layer on its tokens alone."""
    register()
    judge = router(look_ahead)
    model, given, method = decoder(layers=4), texts(), FTP(0.4, judge)
    model.set_attn_implementation(implementation)
    with method.apply(model) as trace:
        seen = watch(model, given)
    ran = [after.ne(before).any(-1) for before, after in seen]
    model.set_attn_implementation("sdpa")
    for sample, length in enumerate(LENGTHS):
        states = [before[sample, :length] for before, _ in seen]
        scores = torch.ones(length)
        for layer in range(4):
            with torch.no_grad():
                logits = judge(torch.ones(1, length, dtype=torch.bool), scores[None], 0.4)[0]
            rows = sorted({0, *(logits[:, RUN] >= logits[:, SKIP]).nonzero().flatten().tolist()})
            assert ran[layer][sample].nonzero().flatten().tolist() == rows
            scores[rows] = by_hand(model, layer, states[layer], rows, look_ahead).float()
    shares = trace.last.skipped
    assert 0 < float(shares[0]) < 1
    assert trace.last.tokens.shape == (4, 3)


@torch.no_grad()
def by_hand(model, layer: int, states: Tensor, rows: list[int], look_ahead: bool) -> Tensor:
    """Scores of the tokens of one text that run a layer."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    module, before = model.layers[layer], states[rows][None]
    rotary = model.rotary_emb(before, position_ids=torch.tensor([rows]))
    normed = module.input_layernorm(before)
    query = module.self_attn.q_proj(normed).view(1, len(rows), 4, 8).transpose(1, 2)
    key = module.self_attn.k_proj(normed).view(1, len(rows), 2, 8).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    s = query @ key.repeat_interleave(2, 1).mT * 8**-0.5
    p = s.masked_fill(torch.ones(len(rows), len(rows)).triu(1).bool(), -torch.inf).softmax(-1)[0].mean(0)
    return p.sum(0) if look_ahead else p.diagonal() * torch.arange(1, len(rows) + 1)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("look_ahead", [True, False])
def test_the_first_token_runs_and_layers_of_sparsity_0_run_whole_whatever_a_router_says(side: str, look_ahead: bool):
    model, given, judge = decoder(), texts(side), Router(8, look_ahead=look_ahead)
    with torch.no_grad():
        list(judge.parameters())[-1].copy_(torch.tensor([-9.0, 9.0]))  # it has every token skip
        dense = model(**given).last_hidden_state
        with FTP((0.0, 0.4, 0.4), judge).apply(model) as trace:
            seen = watch(model, given)
        assert trace.last.tokens.tolist() == [list(LENGTHS), [1, 1, 1], [1, 1, 1]]
        for sample, length in enumerate(LENGTHS):
            first = 0 if side == "right" else max(LENGTHS) - length
            assert seen[1][1][sample].ne(seen[1][0][sample]).any(-1).nonzero().flatten().tolist() == [first]
        with FTP(0.0, judge).apply(model):
            alive = given["attention_mask"].bool()
            close(model(**given).last_hidden_state[alive], dense[alive])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("look_ahead", [True, False])
def test_a_padded_batch_is_each_text_alone(side: str, look_ahead: bool) -> None:
    model, given, method = decoder(), texts(side), FTP(0.4, router(look_ahead))
    alive = given["attention_mask"].bool()
    with torch.no_grad(), method.apply(model) as trace:
        together = model(**given).last_hidden_state
        counts = trace.last.tokens
        for sample in range(3):
            alone = model(input_ids=given["input_ids"][sample : sample + 1, alive[sample]]).last_hidden_state[0]
            close(together[sample, alive[sample]], alone)
            assert trace.last.tokens[:, 0].tolist() == counts[:, sample].tolist()


@pytest.mark.parametrize("known", ["causal", "look ahead", "static"])
def test_causal_choices_know_nothing_of_what_follows(known: str) -> None:
    """What stands behind a token is changed, and then cut off. The other choices know it, as they say."""
    model = decoder(layers=6)
    method = FTP(0.4) if known == "static" else FTP(0.4, router(known == "look ahead"))
    assert method.looks_ahead == (known != "causal")
    ids = texts()["input_ids"][:1]
    other = torch.cat([ids[:, :7], ids[:, 7:].flip(1) % 53 + 5], 1)
    with torch.no_grad(), method.apply(model):
        whole, changed, cut = (model(input_ids=x).last_hidden_state[:, :7] for x in (ids, other, ids[:, :7]))
    same = [torch.allclose(whole, found, rtol=1e-4, atol=1e-5) for found in (changed, cut)]
    assert same == {"causal": [True, True], "look ahead": [False, False], "static": [True, False]}[known]


def test_the_account_counts_the_layers_as_they_ran() -> None:
    register()
    model, given = decoder(), {"input_ids": texts()["input_ids"][:1]}
    model.set_attn_implementation("dynattn:dense")
    with torch.no_grad(), FTP((0.0, 0.5, 1.0)).apply(model) as trace, counting(model) as account:
        model(**given)
    rows = [13, 7, 0]
    assert trace.last.tokens[:, 0].tolist() == rows
    weights = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    pairs = sum(4 * n * (n + 1) // 2 for n in rows)
    assert account.linear.linear == sum(rows) * weights
    assert account.calls == 2
    assert account.attention.scores == account.attention.values == 8 * pairs
    told = of_forward(trace.last, head_dim=8, itemsize=4)
    assert (told.scores, told.values, told.exponentials) == (8 * pairs, 8 * pairs, pairs)


@pytest.mark.parametrize("method", [FTP(0.3), FTP(0), FTP((0.0, 0.25, 1.0))])
def test_names_round_trip(method: FTP) -> None:
    assert parse(method.name) == method


def test_a_router_is_in_no_name() -> None:
    name = FTP(0.3, router()).name
    assert name == "ftp-routed-0.3"
    with pytest.raises(ValueError, match="must be a pruning method's short name"):
        parse(name)


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"sparsity must be a number or a tuple of numbers: got '0\.1'"):
        FTP("0.1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"got \(\)"):
        FTP(())
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"sparsity must be between 0 and 1: got {wrong}"):
            FTP(wrong)
    with pytest.raises(TypeError, match="router must be a Router: got 3"):
        FTP(0.3, 3)  # pyright: ignore[reportArgumentType]
    model = decoder()
    with FTP((0.1, 0.2)).apply(model), pytest.raises(ValueError, match="the model has 3, the method 2; give one"):
        model(**texts())
