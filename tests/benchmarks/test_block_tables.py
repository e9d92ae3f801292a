"""benchmarks/block_tables.py: the page says what the records hold, and nothing that they deny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

KINDS = ("literature", "code", "protocols")
DENSE = [3.0, 3.1, 2.9, 3.2]
MACHINE = dict.fromkeys(
    ("processor", "cores", "threads", "isa", "torch", "dynattn", "os", "python", "date"), "that which is made up"
)


@pytest.fixture
def tables(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with a folder of its own for the records."""
    module = script("block_tables")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def quality(**losses: tuple[float, float]) -> dict[str, Any]:
    """A record in which methods lose so much on code, and of the fact; a tenth of it elsewhere."""
    methods: dict[str, dict[str, list[float]]] = {"dense": dict.fromkeys((*KINDS, "fact"), DENSE)}
    for name, (code, fact) in losses.items():
        of = {"literature": code / 10, "code": code, "protocols": code / 10, "fact": fact}
        methods[name] = {task: [x + loss for x in DENSE] for task, loss in of.items()}
    return {"methods": methods, "tasks": dict.fromkeys((*KINDS, "fact"), ""), "machine": MACHINE}


def times(**speedups: float) -> dict[str, Any]:
    of = {name: {"seconds": 1 / speed, "sdpa": 1.0, "speedup": speed} for name, speed in speedups.items()}
    return {"lengths": {"2048": of}, "machine": MACHINE}


def test_the_fastest_that_stays_within_the_limits_is_to_be_taken(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = quality(good=(0.019, 0.0), better=(0.01, 0.05), code=(0.03, 0.0), fact=(0.0, 0.2), untimed=(0.0, 0.0))
    (tmp_path / "quality-2048.json").write_text(json.dumps(record))
    (tmp_path / tables.RANKED_BY).write_text(json.dumps(times(dense=1.2, good=2.0, better=1.5, code=4.0, fact=3.0)))
    monkeypatch.setattr(tables, "named", lambda kind, tokens: ("dense", "good", "untimed", "unheard-of"))
    first, second, *_ = tables.which().splitlines()
    assert first == (
        "- **SmolLM2, 2048 tokens**: take `good` (2.00×, code +0.019). "
        "Next: `better` (1.50×, a planted fact +0.050), `dense` (1.20×). "
        "Faster, and beyond the limits: `code` (4.00×, code +0.030), `fact` (3.00×, a planted fact +0.200). "
        "Not measured yet: `untimed`, `unheard-of`."
    )
    assert second == "- **SmolLM2, 4096 tokens**: not recorded yet."


def test_dense_attention_is_taken_where_no_choice_pays(tables: Any, tmp_path: Path) -> None:
    (tmp_path / "quality-2048.json").write_text(json.dumps(quality(slow=(0.0, 0.0), bad=(1.0, 0.0))))
    (tmp_path / tables.RANKED_BY).write_text(json.dumps(times(dense=1.2, slow=1.1, bad=4.0)))
    assert "none of those measured pays: `dense` (1.20×) is the fastest" in tables.which()
    assert tables.verdict([tables.Measured("bad", 4.0, "code", 1.0, False)]) == (
        "of 1 measured, none stays within the limits."
    )


def test_what_the_choice_loses_on_other_texts_is_told_beside_it(tables: Any, tmp_path: Path) -> None:
    (tmp_path / "quality-2048.json").write_text(json.dumps(quality(good=(0.01, 0.0), next=(0.0, 0.0))))
    (tmp_path / "again-2048.json").write_text(json.dumps(quality(good=(0.03, 0.0), next=(0.01, 0.0))))
    (tmp_path / tables.RANKED_BY).write_text(json.dumps(times(dense=1.2, good=2.0, next=1.5)))
    assert (
        " On other texts: `good` exceeds the limits (code +0.030), `next` stays within the limits (code +0.010)."
    ) in tables.which().splitlines()[0]


def test_a_table_names_the_machines_that_its_record_was_taken_on(tables: Any, tmp_path: Path) -> None:
    record = {**quality(a=(0.01, 0.0)), "earlier": [{**MACHINE, "processor": "an older one"}]}
    (tmp_path / "quality-2048.json").write_text(json.dumps(record))
    assert "Begun on an older one" in tables.quality_table(2048)


@pytest.mark.parametrize(("score", "fits"), [(0.496, True), (0.494, False), (0.6, True)])
def test_an_encoder_may_lose_a_hundredth_of_its_score(tables: Any, tmp_path: Path, score: float, fits: bool) -> None:
    record = {
        "methods": {"dense": {"retrieval": [0.4, 0.6]}, "a": {"retrieval": [score - 0.1, score + 0.1]}},
        "tasks": {"retrieval": ""}, "metric": "MRR@10", "higher_is_better": True, "kept": {}, "machine": MACHINE,
        "time": {"methods": {"a": {"speedup": 2.0}}},
    }  # fmt: skip
    (tmp_path / "minilm.json").write_text(json.dumps(record))
    (found,) = tables.encoder("minilm")
    assert found.fits == fits
    assert found.text == f"`a` (2.00×, MRR@10 {score - 0.5:+.3f})"


def test_estimates_are_ranked_by_what_they_keep(tables: Any, tmp_path: Path) -> None:
    masses = {"blocktopk-0.25-b64": 0.8, "blocktopk-0.25-b64-sampled": 0.9, "blocktopk-0.25-b16-bounds": 0.95}
    record = {"methods": {name: {kind: [mass, 0.25] for kind in KINDS} for name, mass in masses.items()}}
    record["methods"]["blocktopk-0.25-b64-similar"] = {"code": [0.99, 0.25]}  # the others are yet to be measured
    (tmp_path / "mass-2048.json").write_text(json.dumps(record))
    assert [line.split(" | ")[:3] for line in tables.estimates().splitlines()[2:]] == [
        ["| `sampled`", "0.900", "–"], ["| `mean`", "0.800", "–"],
    ]  # fmt: skip
    (tmp_path / "quality-2048.json").write_text(json.dumps(quality(**{"blocktopk-0.25-b64": (0.6, 0.0)})))
    (tmp_path / tables.RANKED_BY).write_text(json.dumps(times(**{"blocktopk-0.25-b64": 4.0})))
    assert tables.estimates().splitlines()[3] == "| `mean` | 0.800 | +0.600 | 4.00× | – | – |"


def test_the_page_is_what_the_records_make_it(script: Any) -> None:
    module = script("block_tables")
    text = module.PAGE.read_text()
    assert module.page(text) == text, "run python benchmarks/block_tables.py"


def test_a_claim_that_the_records_deny_is_refused(tables: Any, tmp_path: Path) -> None:
    text = tables.PAGE.read_text()
    for claim in tables.CLAIMS:
        assert claim in " ".join(text.split())
    held = {"blocktopk-0.25-b64": 0.8, "blocktopk-0.25-b64-w0-s0": 0.5, "blockbound-0.9-b64": 1.0}
    record = {
        "methods": {name: {kind: [mass, mass] for kind in KINDS} for name, mass in held.items()},
        "machine": MACHINE,
    }
    path = tmp_path / "mass-2048.json"
    path.write_text(json.dumps(record))
    assert "| `blockbound-0.9-b64` | 1.000 (100.0%) |" in tables.page(text)
    for name, denied in (("blocktopk-0.25-b64-w0-s0", 0.7), ("blocktopk-0.25-b64", 0.7), ("blockbound-0.9-b64", 0.9)):
        changed = {**record["methods"], name: {kind: [denied, denied] for kind in KINDS}}
        path.write_text(json.dumps({**record, "methods": changed}))
        with pytest.raises(ValueError, match=r"block_tables: the records must hold that .* they deny it"):
            tables.page(text)


@pytest.mark.parametrize("denied", [None, 2048, 4096, 8192])
def test_what_the_page_says_of_lengths_must_hold_at_each(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: int | None
) -> None:
    monkeypatch.setattr(tables, "CHOICES", {2048: "a", 4096: "b", 8192: "c"})
    (holds,) = [of for claim, of in tables.CLAIMS.items() if claim.startswith("The longer the text")]
    assert holds()  # nothing is recorded, so that nothing is denied
    losses = {2048: (0.01, 0.0, 0.0), 4096: (0.03, 0.01, 0.0), 8192: (0.03, 0.03, 0.01)}
    timed = {str(length): times(a=4.0, b=3.0, c=2.0)["lengths"]["2048"] for length in losses}
    (tmp_path / tables.RANKED_BY).write_text(json.dumps({"lengths": timed}))
    for length, lost in losses.items():
        lost = lost if length != denied else tuple(0.04 - loss for loss in lost)
        record = quality(**{name: (loss, 0.0) for name, loss in zip("abc", lost, strict=True)})
        (tmp_path / f"quality-{length}.json").write_text(json.dumps(record))
    assert holds() == (denied is None)


@pytest.mark.parametrize(("speedup", "holds"), [(3.9, True), (4.1, False)])
def test_what_the_page_says_of_bfloat16_must_hold(tables: Any, tmp_path: Path, speedup: float, holds: bool) -> None:
    (claim,) = [of for text, of in tables.CLAIMS.items() if text.startswith("skips of a margin of 4")]
    alone, inside = "blockmass-0.98-b64-similar", "blockskip-4.0-in(blockmass-0.98-b64-similar)"
    (tmp_path / "time-avx512-bfloat16.json").write_text(json.dumps(times(**{alone: speedup, inside: 4.0})))
    assert claim() == holds
