import dataclasses
import math

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn.methods import DSA, PairMethod, Rows, TopK, parse
from dynattn.methods.dsa import projection, quantise
from tests import gradients

HEAD_DIM = 12


def levels(row: list[float], bits: int) -> tuple[list[int], float]:
    most = 2 ** (bits - 1) - 1
    step = max(abs(x) for x in row) / most or 1.0
    return [round(x / step) for x in row], step


def chosen(query: Tensor, key: Tensor, allowed: Tensor, method: DSA) -> Tensor:
    """The kept pairs of one head by loops: (q_len, kv_len)."""
    q_len, kv_len = allowed.shape
    rank = max(1, round(method.projection * query.shape[1]))
    r = projection(query.shape[1], rank, method.seed)
    q = [levels((r.T @ x).tolist(), method.bits) for x in query]
    k = [levels((r.T @ x).tolist(), method.bits) for x in key]
    scale = query.shape[1] ** -0.5
    kept = torch.zeros(q_len, kv_len, dtype=torch.bool)
    for first in range(0, q_len, method.together):
        run = range(first, min(first + method.together, q_len))
        share: dict[int, float] = {}
        for i in run:
            seen = [j for j in range(kv_len) if allowed[i, j]]
            s = {j: scale * q[i][1] * k[j][1] * sum(a * b for a, b in zip(q[i][0], k[j][0], strict=True)) for j in seen}
            total = sum(math.exp(x) for x in s.values())
            for j in seen:
                share[j] = share.get(j, 0.0) + math.exp(s[j]) / total
        # Sums in another order differ in the last digits; what is equal there is a tie, and the lower index wins.
        best = sorted(share, key=lambda j: (-float(f"{share[j]:.10e}"), j))[
            : math.ceil(round(method.ratio * len(share), 9))
        ]
        for i in run:
            kept[i, [j for j in best if allowed[i, j]]] = True
            if allowed[i].any() and not kept[i].any():
                seen = [j for j in range(kv_len) if allowed[i, j]]
                dots = {j: k[j][1] * sum(a * b for a, b in zip(q[i][0], k[j][0], strict=True)) for j in seen}
                kept[i, max(seen, key=lambda j: (dots[j], -j))] = True
    return kept


def inputs(q_len: int, kv_len: int, heads: int = 2, kv_heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(q_len * 1000 + kv_len)
    shapes = (2, heads, q_len, HEAD_DIM), (2, kv_heads, kv_len, HEAD_DIM), (2, kv_heads, kv_len, 3)
    return [2 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize(
    "method",
    [DSA(0.25), DSA(0.1, 0.5, 8), DSA(0.2, 1.0, 8, 4), DSA(0.3, 0.5, 4, 8, seed=5), DSA(0.01, 0.5, 4, 16), DSA(1.0)],
    ids=lambda method: method.name,
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (19, 19), (5, 33), (9, 4)])
def test_is_the_definition(method: DSA, q_len: int, kv_len: int, causal: bool) -> None:
    q, k, v = inputs(q_len, kv_len)
    allowed = torch.ones(q_len, kv_len, dtype=torch.bool)
    allowed = allowed.tril(kv_len - q_len) if causal else allowed
    scores = (HEAD_DIM**-0.5 * q @ k.mT).masked_fill(~allowed, -math.inf)
    kept = method.choose(scores, Rows(q, k, kv_len - q_len, HEAD_DIM**-0.5))
    expected = torch.stack([torch.stack([chosen(*pair, allowed, method) for pair in zip(*heads, strict=True)])
                            for heads in zip(q, k, strict=True)])  # fmt: skip
    assert torch.equal(kept, expected)
    out = dynattn.attention(q, k, v, method, causal=causal)
    weights = scores.masked_fill(~expected, -math.inf).softmax(-1).nan_to_num(0.0)
    torch.testing.assert_close(out, weights @ v)


@pytest.mark.parametrize("method", [DSA(0.5), DSA(0.5, together=4)], ids=lambda method: method.name)
def test_no_keys_give_0(method: DSA) -> None:
    q, k, v = inputs(5, 0)
    assert torch.equal(dynattn.attention(q, k, v, method), torch.zeros(2, 2, 5, 3, dtype=torch.float64))


@pytest.mark.parametrize("together", [1, 8])
def test_masks_and_grouped_queries(together: int) -> None:
    q, k, v = inputs(21, 30, heads=4)
    mask = torch.rand(2, 1, 21, 30, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0, 0, 3] = False
    method = DSA(0.2, 0.5, 8, together)
    out, aux = dynattn.attention(q, k, v, method, attn_mask=mask, return_aux=True)
    assert (out[0, :, 3] == 0).all()
    kept = torch.stack(
        [torch.stack([chosen(q[b, h], k[b, h // 2], mask[b, 0], method) for h in range(4)]) for b in range(2)]
    )
    torch.testing.assert_close(aux.density, kept.sum((2, 3)).float() / mask.sum((2, 3)))
    scores = (HEAD_DIM**-0.5 * q @ k.repeat_interleave(2, 1).mT).masked_fill(~kept, -math.inf)
    torch.testing.assert_close(out, scores.softmax(-1).nan_to_num(0.0) @ v.repeat_interleave(2, 1))


def test_full_precision_of_everything_is_the_true_top() -> None:
    """With k = head_dim, R a multiple of an orthogonal matrix and 8 bits, predicted order is nearly the true one."""
    q, k, v = inputs(64, 64)
    ours = dynattn.attention(q, k, v, DSA(0.25, 1.0, 8), return_aux=True)[1].kept_mass.mean()
    low = dynattn.attention(q, k, v, DSA(0.25, 0.1, 4), return_aux=True)[1].kept_mass.mean()
    s = HEAD_DIM**-0.5 * q @ k.mT
    best = s.softmax(-1).topk(16).values.sum(-1).mean()
    assert low + 0.1 < ours <= best


def test_runs_keep_the_same_keys() -> None:
    q, k, _ = inputs(40, 50)
    scores = q @ k.mT
    kept = DSA(0.1, 0.5, together=8).choose(scores, Rows(q, k, 10, 1.0))
    runs = kept.unflatten(2, (5, 8))
    assert (runs == runs[:, :, :, :1]).all()
    assert (kept.sum(-1) == 5).all()


def test_projection_keeps_products_on_average() -> None:
    r = projection(6, 30000, seed=3)
    values, counts = (r * (30000 / 3) ** 0.5).unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(counts / r.numel(), torch.tensor([1 / 6, 2 / 3, 1 / 6]), rtol=0, atol=0.01)
    torch.testing.assert_close(r @ r.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=0.03)
    assert torch.equal(r, projection(6, 30000, seed=3))
    assert not torch.equal(r, projection(6, 30000, seed=4))


@pytest.mark.parametrize(("bits", "most"), [(4, 7), (8, 127)])
def test_quantisation(bits: int, most: int) -> None:
    x = torch.randn(50, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[7] = 0
    found = quantise(x, bits)
    assert torch.equal(found.levels, found.levels.round())
    assert found.levels.abs().max() == most
    assert ((found.levels * found.step - x).abs() <= found.step / 2 + 1e-12).all()
    assert (found.levels[7] == 0).all()


def test_the_choice_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(40, 40)
    method = DSA(0.1, 0.5, together=8)
    whole = dynattn.attention(q, k, v, method, causal=True)
    monkeypatch.setattr("dynattn.reference.in_blocks._BLOCK_SCORES", 1)
    assert torch.equal(whole, dynattn.attention(q, k, v, method, causal=True))


def test_gradient_holds_the_choice_fixed() -> None:
    q, k, v = (x[:1].requires_grad_() for x in inputs(12, 12))
    method = DSA(0.3, 0.5, 8, 4)

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dynattn.attention(query, key, value, method, causal=True)

    gradients.check(call, (q, k, v))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("dsa-0.1-k0.25-int4-v1", DSA(0.1)),
        ("dsa-0.05-k0.5-int8-v16-seed7", DSA(0.05, 0.5, 8, 16, 7)),
        ("dsa-0.00001-k1.0-int4-v1", DSA(0.00001, 1.0)),
    ],
)
def test_names_round_trip(name: str, method: DSA) -> None:
    assert method.name == name
    assert parse(name) == method
    assert parse("dsa-0.1") == DSA(0.1)
    assert parse("dsa-0.1-v8") == DSA(0.1, together=8)


def test_everything_is_kept_at_a_ratio_of_one_only() -> None:
    assert DSA(1.0).keeps_everything
    assert not DSA(0.99).keeps_everything
    with pytest.raises(dataclasses.FrozenInstanceError):
        DSA(0.1).ratio = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"ratio": 0.0}, ValueError, "ratio must be between 1e-6 and 1"),
        ({"ratio": 1.5}, ValueError, "ratio must be between 1e-6 and 1"),
        ({"ratio": "0.1"}, TypeError, "ratio must be a float"),
        ({"ratio": 0.1, "projection": math.nan}, ValueError, "projection must be a float between"),
        ({"ratio": 0.1, "bits": 3}, ValueError, "bits must be one of"),
        ({"ratio": 0.1, "together": 2}, ValueError, "together must be one of"),
        ({"ratio": 0.1, "seed": -1}, ValueError, "seed must be at least 0"),
        ({"ratio": 0.1, "seed": 1.0}, TypeError, "seed must be an int"),
    ],
)
def test_wrong_values_are_refused(arguments: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        DSA(**arguments)


@pytest.mark.parametrize("method", [DSA(0.2), TopK(ratio=0.00002, floor=1)], ids=lambda method: method.name)
def test_is_one_node_of_a_compiled_graph(method: PairMethod) -> None:
    """The name of a share, of a small one too, is made while tracing."""
    torch.compiler.reset()  # a float that differs from the last call's would be traced as a symbol
    q, k, v = inputs(20, 20)
    compiled = torch.compile(dynattn.attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, method), dynattn.attention(q, k, v, method))
