"""The decode phase with prompts whose answers are chosen: questions are read by the method, the rest densely."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.integrations.transformers import Call
from dynattn.lab.frontier import decode
from dynattn.lab.frontier.work import cache_read
from dynattn.lab.models import load
from dynattn.lab.tasks.choosing import Slot, asked
from dynattn.methods import NM, BlockTopK, EfficientAttention, TopK, Window

LENGTH, TAIL = 60, 20


@pytest.fixture(scope="module")
def data():
    """Two texts with two questions each."""
    draw = torch.Generator().manual_seed(0)
    built = []
    for _ in range(2):
        text, *questions = (torch.randint(0, 64, (1, n), generator=draw) for n in (LENGTH - TAIL, TAIL, TAIL))
        slots = tuple(Slot(ids, (3, 9), (4, 5, 6)) for ids in questions)
        built.append(asked("x", text[0].tolist(), slots))
    return SimpleNamespace(payload=built)


def test_a_way_that_loses_nothing_scores_as_one_pass(tiny_decoder: Path, data):
    pretrained = load(str(tiny_decoder))
    prompts = decode.prompts(pretrained, data)
    assert [prompt.keys[0].shape[2] for prompt in prompts] == [LENGTH - TAIL] * 2
    pretrained.model.set_attn_implementation("sdpa")

    @torch.no_grad()
    def tell(item, ids: torch.Tensor) -> torch.Tensor:
        return pretrained.model(torch.cat([item.ids, ids], 1)).logits[0, -1]

    expected = [item.score(partial(tell, item)) for item in data.payload]
    for name in ("sdpa", "nm-1-1", "cache-window-99-s4"):
        assert decode.examine(pretrained, name, data, prompts) == expected


def test_a_step_after_the_prompt_tells_what_is_read_of_the_cache(tiny_decoder: Path, data):
    pretrained = load(str(tiny_decoder))
    prompts = decode.prompts(pretrained, data)
    keys = LENGTH - TAIL + 1
    dense = 2 * 2 * keys * 2 * 8 * 4  # layers, key heads, keys, keys and values, head_dim, bytes
    found = {name: decode.look(pretrained, name, data, prompts) for name in ("sdpa", "cache-window-16-s4")}
    assert found["sdpa"].read == dense
    assert found["cache-window-16-s4"].read == dense * 21 / keys
    first: Any = SimpleNamespace(payload=data.payload[:1])
    assert decode.look(pretrained, "sdpa", first, prompts[:1]).read == dense
    for name, work in found.items():
        assert decode.bytes_read(pretrained, name, data, prompts) == work.read
    layers = [module for module in pretrained.model.modules() if isinstance(module, torch.nn.Linear)]
    assert found["sdpa"].weights == sum(layer.weight.nbytes for layer in layers)


def test_bytes_alone_are_told_by_one_step_of_the_method(tiny_decoder: Path, data):
    pretrained = load(str(tiny_decoder))
    prompts = decode.prompts(pretrained, data)
    steps = []
    hook = pretrained.model.register_forward_pre_hook(
        lambda *_: steps.append(pretrained.model.config._attn_implementation)
    )
    decode.bytes_read(pretrained, "cache-window-16-s4", data, prompts)
    hook.remove()
    assert steps == ["dynattn:dense"] * 2  # of each item, and none of the baseline


def test_rows_that_heads_share_are_read_once():
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 64, 8), torch.randn(1, 2, 64, 8)
    module = torch.nn.Identity()

    def read(method) -> float | None:
        return cache_read(Call(0, module, query, key, value, method, None, True, None))

    row = 8 * 4
    assert read(Window(8, sinks=0)) == 2 * 8 * 2 * row
    whole = read(TopK(64))
    assert whole == 2 * 64 * 2 * row
    chosen = read(TopK(4))
    assert chosen is not None
    values = (chosen - 2 * 64 * row) / row  # every key is scored, and the values of both heads' choices are read
    assert 2 * 4 <= values <= 2 * 2 * 4
    assert read(EfficientAttention()) is None
    assert read(BlockTopK(1.0, 16)) == pytest.approx(2 * 64 * 2 * row, rel=0.2)  # and what the estimate looks at


def test_rows_are_read_once_however_many_there_are():
    """More than a processor's cache of a megabyte holds, which would count them once for every head."""
    query, key = torch.randn(1, 3, 1, 64), torch.randn(1, 1, 5000, 64)
    call = Call(0, torch.nn.Identity(), query, key, key, NM(1, 1), None, True, None)
    assert cache_read(call) == 2 * 5000 * 64 * 4


@pytest.mark.parametrize("task", ["ruler-needles", "story-filtering", "needle", "passkey"])
def test_tasks_with_answers_are_decoded(task: str):
    assert decode.answers(task)
    assert not decode.answers("perplexity")
