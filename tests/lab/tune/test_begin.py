"""What a run of ``dynattn tune`` begins with: which length a decoder is tuned at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dynattn.lab.tune import begin
from dynattn.lab.tune.plan import LEAST, Plan


@pytest.mark.parametrize(
    ("items", "taken"),
    [((15, 24), 128), ((15, 18), 256), ((20, 96), 256), ((None, 15), 128)],
    ids=["few at the longest", "few everywhere", "enough", "no time for the longest"],
)
def test_a_shorter_length_is_taken_where_the_longest_leaves_the_proof_few_items(
    items: tuple[int | None, ...], taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(items)

    def plan(*_: Any) -> tuple[Plan | None, None]:
        prove = next(left)
        return (None if prove is None else Plan(LEAST._replace(prove=prove), 2, 0.1, 3)), None

    piece = SimpleNamespace(ids=torch.zeros(1, 128, dtype=torch.long))
    monkeypatch.setattr(begin.pieces, "shuffled", lambda texts: texts)
    monkeypatch.setattr(begin.pieces, "cut", lambda _model, _texts, _length, count: [piece] * count)
    monkeypatch.setattr(begin, "places", lambda *_: None)
    monkeypatch.setattr(begin, "_sooner", lambda *_: SimpleNamespace(forward=1.0, modules={"attention": 0.3}))
    monkeypatch.setattr(begin, "_plan", plan)
    pretrained: Any = SimpleNamespace(model=SimpleNamespace(device="cpu"))
    nothing: Any = None
    assert begin._longest(nothing, (nothing,), pretrained, (256, 128), nothing)[0] == taken
