"""Steps of decoding that are repeated: the plan of an earlier one changes no bit and hides no error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynattn import varlen_attention
from dynattn.kernels import cpu
from dynattn.methods import parse
from dynattn.varlen import again

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="needs the compiled kernels")

TEXTS, PAGE, WIDTH = 3, 16, 8
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "_plans", {})


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """To be filled with what plans give."""
    run, found = again.Prepared.run, []

    def noted(self: again.Prepared, *args: Any) -> Tensor | None:
        found.append(run(self, *args))
        return found[-1]

    monkeypatch.setattr(again.Prepared, "run", noted)
    return found


def step(seed: int, counts: list[int], dtype: torch.dtype = torch.float32, **numbers: torch.dtype) -> dict[str, Any]:
    """Arguments of a step, with pages in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(dtype)  # noqa: E731
    table = torch.randperm(TEXTS * WIDTH, generator=generator).view(TEXTS, WIDTH)
    return {
        "query": draw(TEXTS, 6, 32), "key": draw(TEXTS * WIDTH, PAGE, 2, 32), "value": draw(TEXTS * WIDTH, PAGE, 2, 48),
        "cu_seq_q": torch.arange(TEXTS + 1, dtype=numbers.get("starts", torch.int32)),
        "seqused_k": torch.tensor(counts, dtype=numbers.get("used", torch.int32)),
        "block_table": table.to(numbers.get("table", torch.int32)), "causal": True,
    }  # fmt: skip


def planless(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The same call without a plan."""
    with monkeypatch.context() as patch:
        patch.setattr(again, "_plans", {})
        return varlen_attention(**arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["dense", "nm-1-2", "nm-2-4-x16-w4-s2"])
@pytest.mark.parametrize(
    "numbers",
    [{}, {"table": torch.int64}, {"starts": torch.int64, "used": torch.int64}],
    ids=["int32", "table", "bounds"],
)
def test_a_plan_changes_no_bit(
    method: str, dtype: torch.dtype, numbers: dict[str, torch.dtype], planned: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, counts in enumerate(([5, 100, 128], [6, 101, 127], [0, 1, 17], [128, 128, 128])):
        arguments = {**step(seed, counts, dtype, **numbers), "method": parse(method)}
        got = varlen_attention(**arguments)
        assert len(planned) == seed  # by a plan, from the second on
        want = planless(arguments, monkeypatch)
        assert torch.equal(got, want)
        assert got.stride() == want.stride()
    assert all(out is not None for out in planned)


def test_an_output_may_be_changed_in_place_later(planned: list) -> None:
    """Which PyTorch forbids to views that were made while no gradient was recorded."""
    bias = torch.ones(48, requires_grad=True)
    for _ in range(2):
        with torch.no_grad():
            out = varlen_attention(**step(0, [5, 17, 40]))
        out += bias
        assert out.requires_grad
    assert len(planned) == 1
    assert planned[0] is not None


def test_tables_and_tensors_that_are_views(planned: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server has them: keys and values in one buffer, a table with room for longer texts."""
    for seed in range(3):
        arguments = step(seed, [9, 64, 30])
        both = torch.cat([arguments["key"], arguments["value"]], -1).transpose(1, 2).contiguous().transpose(1, 2)
        arguments |= {"key": both[..., :32], "value": both[..., 32:]}
        arguments["block_table"] = torch.nn.functional.pad(arguments["block_table"], (0, 4), value=10**9)[:, :WIDTH]
        assert torch.equal(varlen_attention(**arguments), planless(arguments, monkeypatch))
    assert len(planned) == 2


def test_a_step_that_is_another(planned: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes do not tell that a text has two queries and another none."""
    varlen_attention(**step(0, [5, 100, 128]))
    arguments: dict[str, Any] = step(1, [5, 100, 128]) | {"cu_seq_q": torch.tensor([0, 2, 2, 3], dtype=torch.int32)}
    assert torch.equal(varlen_attention(**arguments), planless(arguments, monkeypatch))
    assert planned == [None]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seqused_k": torch.tensor([5, 129, 3], dtype=torch.int32)}, "seqused_k must lie between 0"),
        ({"seqused_k": torch.tensor([5, -1, 3], dtype=torch.int32)}, "seqused_k must lie between 0"),
        ({"cu_seq_q": torch.tensor([0, 1, 2, 4], dtype=torch.int32)}, "cu_seq_q must rise"),
        ({"block_table": torch.full((TEXTS, WIDTH), 24, dtype=torch.int32)}, "block_table must name pages"),
        ({"block_table": torch.full((TEXTS, WIDTH), -1, dtype=torch.int32)}, "block_table must name pages"),
        ({"max_q": 0}, "max_q must be"),
        ({"scale": 0.0}, "scale"),
    ],
)  # fmt: skip
def test_errors_are_those_of_a_call_without_a_plan(change: dict[str, Any], match: str) -> None:
    varlen_attention(**step(0, [5, 100, 128]))
    arguments = step(1, [5, 100, 128]) | change
    with pytest.raises((ValueError, TypeError), match=match) as repeated:
        varlen_attention(**arguments)
    again._plans.clear()
    with pytest.raises((ValueError, TypeError)) as first:
        varlen_attention(**arguments)
    assert str(repeated.value) == str(first.value)


@pytest.mark.parametrize(
    "change",
    [{"return_aux": True}, {"dropout_p": 0.5}, {"window_size": (3, 0)}, {"window_size": [-1, -1]}, {"max_k": 500},
     {"method": parse("topk-0.5")}],
)  # fmt: skip
def test_what_is_not_plain_has_no_plan(change: dict[str, Any], planned: list) -> None:
    for seed in range(2):
        varlen_attention(**step(seed, [5, 100, 128]) | change)
    assert planned == []
    assert again._plans == {}


def test_gradients_have_no_plan(planned: list) -> None:
    varlen_attention(**step(0, [5, 100, 128]))
    arguments = step(1, [5, 100, 128])
    arguments["key"].requires_grad_()
    varlen_attention(**arguments).sum().backward()
    assert arguments["key"].grad is not None
    assert planned == []


def test_plans_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "_MOST", 2)
    for scale in (0.1, 0.2, 0.3):
        varlen_attention(**step(0, [5, 100, 128]), scale=scale)
    assert len(again._plans) == 1
