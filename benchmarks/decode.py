"""Decoding with a key-value cache on SmolLM2: speed and quality of every way, after prompts that are read densely.

    python benchmarks/decode.py speed 1024 4096      # a minute or two each; 16384 for pages, beyond the model's context
    python benchmarks/decode.py quality 1024         # some minutes; goes on after a kill, and with ways that are new

Writes benchmarks/results/decode/{speed,quality}-<length>.json; benchmarks/decode_table.py puts them into
docs/decode.md.

- speed: every way decodes the same 16 tokens one by one after the same prompt; ways are interleaved. The prompt's
  keys and values are those of 512 real tokens, repeated, which costs less to make and decides no time. ``bare`` decodes
  after 16 tokens: what a step costs when attention and its cache cost nothing, a bound on every way.
- quality: the prompt is read densely, but for its last token; that token and the answer are read by the way. So the
  way's attention sees each token of the answer, and the prompt's own reading is the same for all.
  ``needle, asked later`` reads the last 64 tokens before the answer, the question among them, by the way as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from dynattn.lab.decode.prompt import (
    PIECE,
    Prompt,
    cache_bytes,
    cache_of,
    read,
    repeated,
    score,
    shortened,
    step_seconds,
)
from dynattn.lab.decode.results import DecodeQuality, DecodeSpeed, ItemScores, WaySpeed
from dynattn.lab.decode.ways import BASELINE, Way, cut_once, find
from dynattn.lab.figures import Spread
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.records import write_record
from dynattn.lab.tasks import make
from dynattn.lab.tasks.recall import encode, excerpt
from dynattn.lab.tasks.texts import wikipedia
from dynattn.lab.timing import interleaved, own_seconds

RESULTS = Path(__file__).parent / "results" / "decode"
MODEL = "smollm2"
BARE = "bare"
BARE_TOKENS = 16
BY_REFERENCE = ("topk", "window")  # these run in plain PyTorch, and are timed only on short prompts
SAME = ("sdpa-in-place", "dense-in-place")  # they give what dense gives
QUEST = 1024  # tokens that Quest keeps by its source
ALL_UP_TO = 2048  # up to so many tokens all ways are timed
READ = 512  # so many tokens of the prompt are really read where only time counts
SECONDS, ROUNDS = 60.0, 3  # the time spent at one length, and the fewest rounds
ITEMS = 4
AHEAD = 16  # tokens of a draft
CONTINUED = 128  # so many tokens of an article follow the prompt
LATER = 64  # so many tokens before the answer are read after the eviction, where the question comes later


def ways(length: int) -> list[Way]:
    """What is compared; windows, ratios, pages and what is chosen once leave a quarter of the tokens, N:M half of them.
    After long prompts Quest reads its published budget too. Drafts are of :data:`AHEAD` tokens, by the model itself or
    by the model with 1:2 attention."""
    quarter = length // 4
    budgets = {quarter // 16 * 16, *({QUEST} if length > QUEST else ())}
    speckv, specpc = f"cache-speckv-{quarter}-l{AHEAD}", f"cache-specpc-{quarter}"
    names = (
        BASELINE, "sdpa-in-place", "dense-in-place", "nm-2-4", "nm-1-2-w64-s4", "topk-0.25", f"window-{quarter}-s4",
        f"cache-window-{quarter}-s4", "cache-spatten-0.25", "cache-spatten-flat-0.25",
        *(f"cache-quest-{budget}" for budget in sorted(budgets)), cut_once("snapkv", quarter),
        cut_once("adasnapkv", quarter), speckv, f"{speckv}-draft-nm-1-2", specpc, f"{specpc}-draft-nm-1-2",
        f"cache-speckvpc-{length // 2}-{quarter}-l{AHEAD}-draft-nm-1-2",
    )  # fmt: skip
    return [find(name) for name in names]


def timed_ways(length: int) -> list[Way]:
    """What is timed: steps after a draft's choice are as fast as those after SnapKV's, and are not timed again."""
    fast = [way for way in ways(length) if way.read is None]
    return [way for way in fast if length <= ALL_UP_TO or way.name.split("-")[0] not in BY_REFERENCE]


def speed(pretrained: Pretrained, length: int) -> None:
    """Time every way after one prompt, and write the record."""
    ids = _article(pretrained, 0, READ + PIECE)
    model = pretrained.model
    prompt, after = repeated(read(model, ids[:, :READ]), length // READ), ids[:, READ:]
    compared = timed_ways(length)
    timed: dict[str, Callable[[], float]] = {
        way.name: partial(step_seconds, model, prompt, way, after) for way in compared
    }
    timed[BARE] = partial(step_seconds, model, shortened(prompt, BARE_TOKENS), find("dense-in-place"), after)

    timings = interleaved(
        timed, seconds=SECONDS, least=ROUNDS, min_sample=None, each=PIECE, elapsed=own_seconds, on_round=print
    )
    rows = []
    for name, timing in timings.items():
        step, ratio = timing.seconds, timing.speedup(timings[BASELINE])
        way, read_before = (find("dense-in-place"), shortened(prompt, BARE_TOKENS)) if name == BARE else (
            next(way for way in compared if way.name == name), prompt)  # fmt: skip
        rows.append(
            WaySpeed(
                way=name,
                step=Spread(median=1e3 * step.median, q1=1e3 * step.q1, q3=1e3 * step.q3),
                speedup=Spread(median=ratio.median, q1=ratio.q1, q3=ratio.q3),
                samples=len(timing.samples),
                disturbed=timing.disturbed if timing.waited else None,
                cache=_bytes_after(model, read_before, way, after),
            )
        )
    found = DecodeSpeed(
        model=pretrained.name, description=pretrained.description, machine=machine(), length=length, steps=PIECE,
        weights=sum(p.nbytes for p in model.parameters()), rows=rows,
    )  # fmt: skip
    write_record(found, RESULTS / f"speed-{length}.json")


def quality(pretrained: Pretrained, length: int) -> None:
    """Score every way on every context where the record lacks it, and write it after each context."""
    path = RESULTS / f"quality-{length}.json"
    compared = [way for way in ways(length) if way.name not in SAME]
    names = [way.name for way in compared]
    found = DecodeQuality(
        model=pretrained.name,
        description=pretrained.description,
        machine=machine(),
        length=length,
        ways=names,
        items=[],
    )
    if path.exists():
        found = DecodeQuality.model_validate_json(path.read_text())
        if not set(found.ways) <= set(names):
            raise SystemExit(f"decode: a record must have no other ways: {path} has some; move it away")
    done = {(item.task, item.item): item for item in found.items}
    for question in questions(pretrained, length):
        item = done.get((question.task, question.label)) or ItemScores(
            task=question.task, item=question.label, nll={}, hit={}
        )
        missing = [way for way in compared if way.name not in item.nll]
        if not missing:
            continue
        prompt = read(pretrained.model, question.ids[:, : question.prompt])
        for way in missing:
            nll, hit = score(pretrained.model, prompt, way, question.ids, question.answer)
            item.nll[way.name], item.hit[way.name] = nll, hit
        done[question.task, question.label] = item
        found = found.model_copy(update={"ways": _in_all(names, done.values()), "items": list(done.values())})
        write_record(found, path)
        print(item.task, item.item, {name: round(nll, 3) for name, nll in item.nll.items()}, flush=True)


def _in_all(names: list[str], items: Iterable[ItemScores]) -> list[str]:
    """The ways that every context was scored by, which are those that a table can show."""
    return [name for name in names if all(name in item.nll for item in items)]


class Question(NamedTuple):
    """A context; ``prompt`` tokens of it are read densely, ``answer`` tokens at its end are scored."""

    task: str
    label: str
    ids: Tensor
    prompt: int
    answer: int


def questions(pretrained: Pretrained, length: int) -> Iterator[Question]:
    """Items of all tasks, in turns, so that a record that is not whole has something of each."""
    made = {
        name: make(name, pretrained, items=ITEMS, tokens=length).prepare(pretrained)
        for name in ("needle", "multi-needle", "variables", "common-words")
    }
    for index in range(ITEMS):
        ids = _article(pretrained, index, length + CONTINUED)
        yield Question("continuation", wikipedia()[index].title, ids, length - 1, CONTINUED)
        for name, data in made.items():
            ids, answer = data.payload[index]
            whole = ids.shape[1]
            yield Question(name, data.labels[index], ids, whole - answer - 1, answer)
            if name == "needle":
                yield Question("needle, asked later", data.labels[index], ids, whole - answer - LATER, answer)


def _article(pretrained: Pretrained, index: int, tokens: int) -> Tensor:
    text = " ".join(excerpt(wikipedia(), index, tokens))
    return torch.tensor([encode(pretrained.processor, text)[:tokens]])


@torch.inference_mode()
def _bytes_after(model: Any, prompt: Prompt, way: Way, ids: Tensor) -> int:
    cache = cache_of(model, prompt, way)
    model.set_attn_implementation(way.together)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache_bytes(cache)


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    if len(arguments) < 2 or arguments[0] not in ("speed", "quality") or not all(a.isdigit() for a in arguments[1:]):
        sys.exit(__doc__)
    torch.set_num_threads(1)  # two threads that wait for each other suffer most on a machine that others use
    disable_progress_bar()
    pretrained = load(MODEL)
    for length in map(int, arguments[1:]):
        (speed if arguments[0] == "speed" else quality)(pretrained, length)


if __name__ == "__main__":
    main(sys.argv[1:])
