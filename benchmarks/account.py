"""Record what methods cost in multiply-adds and DRAM bytes on real inputs, and write the tables of docs/account.md.

    python benchmarks/account.py            # some ten minutes: benchmarks/results/account.json
    python benchmarks/account.py frontier   # a minute: account-frontier.json, the methods of dynattn frontier
    python benchmarks/account.py table      # docs/account.md from the record

Nothing is timed, so the machine need not be idle. Every method of a model runs on the same input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from marked import rewritten

from dynattn import pruning
from dynattn.account import MEGABYTE, Account, Work, counting, of_forward, of_model
from dynattn.integrations.transformers import register
from dynattn.lab.decode.prompt import cache_of, read
from dynattn.lab.decode.ways import find
from dynattn.lab.frontier.methods import BUDGETS, entries
from dynattn.lab.inspect import from_image, from_text
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.records import write_json
from dynattn.lab.tasks.recall import encode
from dynattn.lab.tasks.texts import wikipedia
from dynattn.pruning import SpAtten, parse

RECORD = Path(__file__).parent / "results" / "account.json"
FRONTIER = Path(__file__).parent / "results" / "account-frontier.json"
FRONTIER_TOKENS = 256  # the length of the longest texts of the recorded frontier
PAGE = Path(__file__).parent.parent / "docs" / "account.md"
CACHE = MEGABYTE
PROMPT, STEPS = 1024, 8
UNFUSED = "unfused"

ATTENTION = (
    "nm-2-4", "nm-1-2", "nm-1-4", "topk-0.25", "threshold-0.01", "blocktopk-0.25-b16", "window-64-s4", "random-0.25",
    "fixed-0.25", "dsa-0.25", "scatterbrain", "efficient",
)  # fmt: skip
PRUNING = ("spatten-0.5", "spatten-0.5-h0.75", "spatten-0.5-v0.25", "spatten-0.5-q8.4")
THRESHOLD = {"minilm": "ltp-0.002", "dinov2": "ltp-0.0005"}  # the mean importance of n tokens is 1/n
INSIDE = "nm-1-2"
DECODE = (
    "dense-in-place", "nm-2-4", "nm-1-2", "topk-0.25", "window-256-s4", "cache-window-256-s4", "cache-spatten-0.25",
    "cache-quest-256",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Measure, or write the page."""
    if arguments == ["table"]:
        PAGE.write_text(with_tables(PAGE.read_text(), json.loads(RECORD.read_text())))
        return 0
    if arguments == ["frontier"]:
        _save(FRONTIER, {"minilm": contenders("minilm")})
        return 0
    if arguments:
        print(__doc__)
        return 2
    _save(RECORD, {"minilm": encoder("minilm"), "dinov2": encoder("dinov2"), "smollm2": decoder("smollm2")})
    return 0


def _save(path: Path, models: dict[str, Any]) -> None:
    write_json(path, {"machine": machine(), "cache_bytes": CACHE, "models": models})


def encoder(name: str) -> dict[str, Any]:
    """Attention methods, pruning methods, and both, in one pass over a text or a picture."""
    pretrained = load(name)
    vision = pretrained.kind == "vision"
    subject = from_image(pretrained, None) if vision else from_text(pretrained, None, "A news article", 512)
    rows = {UNFUSED: under(pretrained, subject.inputs, "dense", fused=False)}
    rows |= {method: under(pretrained, subject.inputs, method) for method in ("dense", *ATTENTION)}
    rows |= {method: pruned(pretrained, subject.inputs, method) for method in (*PRUNING, THRESHOLD[name])}
    with parse(PRUNING[0]).apply(pretrained.model):
        rows[f"{PRUNING[0]} with {INSIDE} inside"] = under(pretrained, subject.inputs, INSIDE)
    return {"tokens": len(subject.labels), "rows": {k: costs(v) for k, v in rows.items()}}


def contenders(name: str) -> dict[str, Any]:
    """Every method of ``dynattn frontier`` at its budgets, in one pass over a text of the frontier's length."""
    pretrained = load(name)
    inputs = from_text(pretrained, None, "A news article", FRONTIER_TOKENS).inputs
    rows = {"dense": under(pretrained, inputs, "dense")}
    for entry in entries(pretrained.kind, "prefill", FRONTIER_TOKENS, BUDGETS):
        count = under if pruning.find(entry.name) is None else pruned
        rows[entry.name] = count(pretrained, inputs, entry.name)
    return {"tokens": FRONTIER_TOKENS, "rows": {k: costs(v) for k, v in rows.items()}}


def under(pretrained: Pretrained, inputs: Mapping[str, Any], method: str, **options: Any) -> Account:
    """An attention method; further arguments are those of :func:`dynattn.account.of_model`."""
    register(method)
    pretrained.model.set_attn_implementation(f"dynattn:{method}")
    return of_model(pretrained.model, inputs, cache_bytes=CACHE, **options)


def pruned(pretrained: Pretrained, inputs: Mapping[str, Any], name: str) -> Account:
    """A pruning method with dense attention: attention from the counts of the forward, layers as they ran."""
    method, config = parse(name), pretrained.model.config
    pretrained.model.set_attn_implementation("sdpa")
    with method.apply(pretrained.model) as trace, counting(pretrained.model) as account, torch.inference_mode():
        pretrained.model(**inputs)
    bits = method.bits if isinstance(method, SpAtten) else None
    account.attention = of_forward(
        trace.last, head_dim=config.hidden_size // config.num_attention_heads, itemsize=4, bits=bits
    )  # fmt: skip
    return account


def decoder(name: str) -> dict[str, Any]:
    """Tokens one by one after a prompt that was read densely."""
    pretrained = load(name)
    ids = torch.tensor([encode(pretrained.processor, wikipedia()[0].body)[: PROMPT + STEPS]])
    prompt = read(pretrained.model, ids[:, :PROMPT])
    rows = {}
    for method in DECODE:
        way = find(method)
        cache = cache_of(pretrained.model, prompt, way)
        pretrained.model.set_attn_implementation(way.together)
        with counting(pretrained.model, cache_bytes=CACHE) as account, torch.inference_mode():
            for token in ids[:, PROMPT:].split(1, 1):
                pretrained.model(input_ids=token, past_key_values=cache, use_cache=True)
        rows["dense" if method == "dense-in-place" else method] = account
    return {"tokens": PROMPT, "rows": {k: costs(v) for k, v in rows.items()}}


def costs(account: Account) -> dict[str, Any]:
    """As JSON takes it."""
    return {"attention": asdict(account.attention), "linear": asdict(account.linear)}


def table(found: dict[str, Any]) -> str:
    """One model's account in Markdown, as ratios to dense attention by a fused kernel."""
    lines = [
        "| method | attention: multiply-adds | DRAM bytes | whole model: multiply-adds | DRAM bytes |",
        "|---|---|---|---|---|",
    ]
    dense = _works(found["rows"]["dense"])
    for name, row in found["rows"].items():
        attention, total = _works(row)
        cells = (
            _cell(attention.multiply_adds, dense[0].multiply_adds, "M", 1e6),
            _cell(attention.bytes, dense[0].bytes, "MB", 1e6),
            _cell(total.multiply_adds, dense[1].multiply_adds, "M", 1e6),
            _cell(total.bytes, dense[1].bytes, "MB", 1e6),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _works(row: dict[str, Any]) -> tuple[Work, Work]:
    attention = Work(**row["attention"])
    return attention, attention + Work(**row["linear"])


def _cell(value: float, dense: float, unit: str, size: float) -> str:
    return f"{value / size:,.1f} {unit} ({value / dense:.2f})"


def with_tables(page: str, record: dict[str, Any]) -> str:
    """The page with every model's table in its place.

    Raises:
        ValueError: the page has no place for one.
    """
    for name, found in record["models"].items():
        start = f"<!-- {name}: written by benchmarks/account.py -->"
        page = rewritten(page, start, table(found), f"<!-- end of {name} -->", "account")
    return page


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
