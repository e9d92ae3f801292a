"""Trains FTP's routers for SmolLM2 and measures what skipping tokens costs and gains, against tokens drawn by lot.

    python benchmarks/ftp.py train FOLDER      # a schedule and a router for each sparsity, ten minutes each; goes on
                                               # after a kill
    python benchmarks/ftp.py measure FOLDER    # benchmarks/results/pruning/ftp.json; speed needs an idle machine
    python benchmarks/ftp.py table             # the table of docs/methods/ftp.md from the record

Routers are causal, so that the likelihood of every token is a fair score. They learn on blocks of the articles that no
item is from, as long as the items, since a causal router knows a position by its number alone. How much each layer
skips is searched with the static router, on one such block. The lot draws as many tokens for each layer as the router
took, over all items together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from marked import difference, markdown, rewritten, times
from torch import Tensor

from dynattn.lab.figures import Interval
from dynattn.lab.machine import describe, machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.records import write_json
from dynattn.lab.statistics import interval
from dynattn.lab.tasks import Perplexity
from dynattn.lab.timing import interleaved
from dynattn.pruning import FTP, Router
from dynattn.pruning.decoders import find
from dynattn.pruning.learn_router import distance, learn_router
from dynattn.pruning.search_sparsity import search_sparsity
from dynattn.pruning.skipping import Choice, Way, skipped

RECORD = Path(__file__).parent / "results" / "pruning" / "ftp.json"
PAGE = Path(__file__).parent.parent / "docs" / "methods" / "ftp.md"
START, END = "<!-- written by benchmarks/ftp.py -->", "<!-- end -->"
SPARSITIES = (0.1, 0.2, 0.3)
TOKENS, STEPS = 256, 150
POPULATION, GENERATIONS = 12, 12
HELD_OUT = Perplexity(items=12, tokens=TOKENS)
SECONDS = 20.0


def blocks(pretrained: Pretrained, task: Perplexity) -> Iterator[dict[str, Tensor]]:
    """``STEPS`` blocks of tokens in a fixed order, again from the start where there are fewer."""
    of_blocks = Perplexity(items=task.items, tokens=TOKENS, texts=task.texts)
    found = of_blocks.blocks(pretrained, of_blocks.prepare(pretrained))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    for step in range(STEPS):
        yield {"input_ids": found[order[step % len(order)]].unsqueeze(0)}


def train(pretrained: Pretrained, task: Perplexity, folder: Path, say: Callable[[str], None] = print) -> None:
    """Train what the folder lacks."""
    for sparsity in SPARSITIES:
        home = folder / f"router-{sparsity:g}"
        if (home / "way.json").exists():
            continue
        torch.manual_seed(0)
        router, texts = Router(TOKENS), list(blocks(pretrained, task))
        searched = search_sparsity(
            pretrained.model, texts[:1], sparsity=sparsity,
            population=POPULATION, generations=GENERATIONS,
        )  # fmt: skip
        say(f"{sparsity:g}: layers skip {searched.sparsity}, distance {searched.distances[-1]:.3f}")
        found = learn_router(pretrained.model, texts, sparsity=searched.sparsity, router=router)
        router.save(home)
        way = {
            "sparsity": searched.sparsity, "distances": searched.distances, "distillation": found.distillation,
            "skipped": found.skipped, "guide": found.guide, "reached": found.reached,
        }  # fmt: skip
        write_json(home / "way.json", way)  # last: a router without it is trained again
        say(f"{sparsity:g}: skips {found.reached:.2f}, distillation {found.distillation[-1]:.3f}")


class Lot(Way):
    """Each layer is run by tokens drawn by lot, a given share of them, the first one always."""

    def __init__(self, shares: list[float], layers: int, alive: Tensor) -> None:
        self.shares, self.alive = shares, alive
        self.drawn = torch.Generator().manual_seed(0)

    def choose(self, layer: int) -> Choice:
        rank = torch.rand(self.alive.shape, generator=self.drawn).argsort(1).argsort(1)
        runs = rank < round(self.shares[layer] * self.alive.shape[1])
        runs[:, 0] = True
        return Choice(runs)


def run_by(pretrained: Pretrained, task: Perplexity, within: AbstractContextManager[Any]) -> tuple[Any, list[Any]]:
    """The scores of every item, and what each forward did where tokens skip."""
    data, forwards = task.prepare(pretrained), []
    with within as trace:
        if trace is not None:
            trace.on_forward = forwards.append
        return task.evaluate(pretrained, data, lambda: None).scores, forwards


@torch.inference_mode()
def apart(pretrained: Pretrained, task: Perplexity, within: AbstractContextManager[Any]) -> float:
    """How far the last hidden states of the items are from those of the dense model, the mean over the items."""
    runner = find(pretrained.model).runner
    texts = task.prepare(pretrained).payload
    dense = [runner(input_ids=ids, use_cache=False).last_hidden_state for ids in texts]
    with within:
        found = [runner(input_ids=ids, use_cache=False).last_hidden_state for ids in texts]
    every = [torch.ones_like(ids, dtype=torch.bool) for ids in texts]
    return sum(map(float, map(distance, found, dense, every))) / len(texts)


def measure(pretrained: Pretrained, task: Perplexity, folder: Path) -> None:
    """Score and time every router, and score the lot that skips as much."""
    model, rows = pretrained.model, []
    dense, _ = run_by(pretrained, task, nullcontext())
    ids = task.prepare(pretrained).payload[0]
    for sparsity in SPARSITIES:
        home = folder / f"router-{sparsity:g}"
        schedule = tuple(json.loads((home / "way.json").read_text())["sparsity"])
        method = FTP(schedule, Router.load(home))
        scores, forwards = run_by(pretrained, task, method.apply(model))
        ran = torch.stack([forward.tokens.sum(1) for forward in forwards]).sum(0)
        shares = (ran / torch.stack([forward.layers[0].notes["present"] for forward in forwards]).sum()).tolist()
        lot, _ = run_by(pretrained, task, skipped(model, partial(Lot, shares)))
        timings = interleaved(
            {"dense": partial(forward, model, ids, None), "ftp": partial(forward, model, ids, method)}, seconds=SECONDS
        )
        rows.append(
            {
                "asked": sparsity, "skipped": 1 - sum(shares) / len(shares), "shares": shares, "schedule": schedule,
                "distance": apart(pretrained, task, method.apply(model)),
                "lot_distance": apart(pretrained, task, skipped(model, partial(Lot, shares))),
                "nll": float(scores.mean()), "more": interval(scores - dense).model_dump(),
                "lot": float(lot.mean()), "lot_more": interval(lot - dense).model_dump(),
                "time": times(timings, "dense"),
            }
        )  # fmt: skip
    facts = {"model": pretrained.description, "data": task.prepare(pretrained).summary, "steps": STEPS, "block": TOKENS}
    write_json(
        RECORD, {"machine": machine(), **facts, "dense": float(dense.mean()), "timed": ids.shape[1], "rows": rows}
    )


@torch.inference_mode()
def forward(model: Any, ids: Tensor, method: FTP | None) -> None:
    """One forward of the prompt, dense or skipping."""
    with nullcontext() if method is None else method.apply(model):
        model(input_ids=ids, use_cache=False, logits_to_keep=1)


def table() -> str:
    """The record in Markdown."""
    if not RECORD.exists():
        return "Not measured yet."
    found = json.loads(RECORD.read_text())
    rows = [["dense", "0", f"{found['dense']:.3f}", "", "", "0", "", "1.00"]]
    for row in found["rows"]:
        more, lot_more = (difference(Interval(**row[name])) for name in ("more", "lot_more"))
        speed = row["time"]["ftp"]["speedup"]
        rows.append(
            [
                f"router for {row['asked']:g}", f"{row['skipped']:.2f}", f"{row['nll']:.3f}", more, lot_more,
                f"{row['distance']:.3f}", f"{row['lot_distance']:.3f}",
                f"{speed['median']:.2f} ({speed['q1']:.2f}–{speed['q3']:.2f})",
            ]
        )  # fmt: skip
    columns = (
        "", "skipped", "nats a token", "more than dense", "more by lot", "distance", "by lot", "times as fast as dense",
    )  # fmt: skip
    head = (
        f"{found['model']}; {found['data']}. Routers: {found['steps']} steps of {found['block']} tokens. Distance: the "
        f"distillation term. Speed: a held-out prompt of {found['timed']} tokens, interleaved, median (quartiles). "
        f"{describe(found['machine'])}."
    )
    return f"{head}\n\n{markdown(columns, rows)}"


def main(arguments: list[str]) -> None:
    """Do what the arguments say."""
    if arguments == ["table"]:
        PAGE.write_text(rewritten(PAGE.read_text(), START, table(), END, "ftp"))
        return
    if len(arguments) != 2 or arguments[0] not in ("train", "measure"):
        sys.exit(__doc__)
    torch.set_num_threads(int(machine()["cores"]))
    work = train if arguments[0] == "train" else measure
    work(load("smollm2"), HELD_OUT, Path(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
