"""Record what the guards of a tuned model cost: the audit of one query row in a hundred, and ``Mass(p)``.

    python benchmarks/tune_guards.py                  # benchmarks/results/tune/guards.json; about five minutes
    python benchmarks/tune_guards.py --tokens 256     # shorter texts, for a try

SmolLM2's forward with each method, with ``audit(share=0.01)`` and without, in alternation: the ratio of the two is the
cost of the audit. The same times, each over SDPA's, are ``Mass(p)``'s beside those of top-k and thresholds that keep
about as much.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from dynattn.integrations.transformers import audit, observing, register
from dynattn.lab.machine import machine
from dynattn.lab.models import load
from dynattn.lab.records import write_json
from dynattn.lab.tasks.texts import wikipedia
from dynattn.lab.timing import Spread, interleaved

RESULT = Path(__file__).parent / "results" / "tune" / "guards.json"
METHODS = ("mass-0.95", "mass-0.99", "topk-0.125", "topk-0.25", "threshold-0.0014", "window-128-s4")
_SHARE = 0.01
_ROUNDS = 5


def main() -> None:
    """Time all methods, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(machine()["cores"])
    pretrained = load("smollm2")
    names = register(*METHODS)[: len(METHODS)]
    ids = pretrained.processor(wikipedia()[0].body, return_tensors="pt")["input_ids"][:, : given.tokens]
    inputs = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
    with torch.inference_mode():
        methods = [
            _method(pretrained.model, inputs, short, name, given.rounds)
            for short, name in zip(METHODS, names, strict=True)
        ]
    write_json(given.output, {
        "model": "smollm2", "tokens": ids.shape[1], "share": _SHARE, "rounds": given.rounds, "methods": methods,
        "machine": machine(),
    })  # fmt: skip
    for each in methods:
        print(
            f"{each['method']:18} kept {each['kept_mass']:.3f}  {each['speedup']['median']:.2f} times as fast as SDPA, "
            f"audited {each['audit']['median'] - 1:+.1%}"
        )


def _method(model: Any, inputs: dict[str, Any], short: str, name: str, rounds: int) -> dict[str, Any]:
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "sdpa": partial(_plain, model, "sdpa"), "own": partial(_plain, model, name),
        "audited": partial(_audited, model, name),
    }  # fmt: skip
    timings = interleaved(ways, rounds=rounds, min_sample=None, elapsed=partial(_seconds, model, inputs))
    own, sdpa, audited = timings["own"], timings["sdpa"], timings["audited"]
    kept, density = _kept(model, inputs, name)
    return {
        "method": short, "kept_mass": kept, "density": density, "seconds": vars(own.seconds),
        "speedup": vars(own.speedup(sdpa)), "audit": vars(Spread.of(_ratios(audited.samples, own.samples))),
        "disturbed": own.disturbed + sdpa.disturbed + audited.disturbed,
    }  # fmt: skip


def _seconds(model: Any, inputs: dict[str, Any], way: Callable[[], Any], calls: int) -> float:
    """Of forwards; setting the model is not timed."""
    with way():
        start = perf_counter()
        for _ in range(calls):
            model(**inputs)
        return perf_counter() - start


def _plain(model: Any, name: str) -> AbstractContextManager[Any]:
    model.set_attn_implementation(name)
    return nullcontext()


@contextmanager
def _audited(model: Any, name: str) -> Iterator[None]:
    model.set_attn_implementation(name)
    with audit(model, share=_SHARE):
        yield


def _ratios(over: tuple[float, ...], under: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a / b for a, b in zip(over, under, strict=True))


def _kept(model: Any, inputs: dict[str, Any], name: str) -> tuple[float, float]:
    """Mean kept mass and density of all calls."""
    from dynattn import attention

    masses, densities = [], []

    def see(call: Any) -> None:
        _, aux = attention(
            call.query, call.key, call.value, call.method, attn_mask=call.attn_mask, causal=call.causal,
            scale=call.scale, return_aux=True,
        )  # fmt: skip
        masses.append(float(aux.kept_mass.mean()))
        densities.append(float(aux.density.mean()))

    model.set_attn_implementation(name)
    with observing(see):
        model(**inputs)
    return sum(masses) / len(masses), sum(densities) / len(densities)


if __name__ == "__main__":
    main()
