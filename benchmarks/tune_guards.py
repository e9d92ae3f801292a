"""Record what the guards of a tuned model cost: the audit of one query row in a hundred, and ``Mass(p)``.

    python benchmarks/tune_guards.py                  # benchmarks/results/tune/guards.json; about two minutes
    python benchmarks/tune_guards.py --tokens 256     # shorter texts, for a try

SmolLM2's forward with SDPA and with each method under ``audit(share=0.01)``, all in alternation. The audit's own time
is taken inside it, call by call: whole forwards differ from each other by more than it takes. What is left is the
method's, and its ratio to SDPA's is ``Mass(p)``'s beside those of top-k, thresholds and others that keep about as
much.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from dynattn.integrations.transformers import audit, observing, register
from dynattn.integrations.transformers.audit import Audit
from dynattn.lab.machine import machine
from dynattn.lab.models import load
from dynattn.lab.records import write_json
from dynattn.lab.tasks.texts import wikipedia
from dynattn.lab.timing import Spread, Timing, interleaved

RESULT = Path(__file__).parent / "results" / "tune" / "guards.json"
METHODS = (
    "mass-0.95", "mass-0.99", "topk-0.125", "threshold-0.0014", "nm-1-2-x16", "window-128-s4",
    "blocktopk-0.25-b64-mean",
)  # fmt: skip
_SHARE = 0.01
_ROUNDS = 3


def main() -> None:
    """Time all methods, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(machine()["cores"])
    pretrained = load("smollm2")
    ids = pretrained.processor(wikipedia()[0].body, return_tensors="pt")["input_ids"][:, : given.tokens]
    inputs = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
    with torch.inference_mode():
        methods = record(pretrained.model, inputs, METHODS, given.rounds)
    write_json(given.output, {
        "model": "smollm2", "tokens": ids.shape[1], "share": _SHARE, "rounds": given.rounds, "methods": methods,
        "machine": machine(),
    })  # fmt: skip
    for each in methods:
        print(
            f"{each['method']:24} kept {each['kept_mass']:.3f}  {each['speedup']['median']:.2f} times as fast as SDPA, "
            f"audited {each['audit']['median']:+.2%}"
        )


def record(model: Any, inputs: dict[str, Any], names: tuple[str, ...], rounds: int) -> list[dict[str, Any]]:
    """What each method takes, and its audit beside it, in alternation with SDPA."""
    implementations = dict(zip(names, register(*names), strict=False))
    spent: dict[str, list[float]] = {name: [] for name in names}  # seconds of the audit, forward by forward
    ways: dict[str, Callable[[], Any]] = {"sdpa": partial(_dense, model)}
    ways |= {name: partial(_audited, model, implementations[name], spent[name]) for name in names}
    timings = interleaved(ways, rounds=rounds, min_sample=None, elapsed=partial(_seconds, model, inputs))
    return [
        _method(
            name, timings["sdpa"], timings[name], spent[name][-rounds:], _kept(model, inputs, implementations[name])
        )
        for name in names
    ]


def _method(name: str, sdpa: Timing, whole: Timing, audited: list[float], kept: tuple[float, float]) -> dict[str, Any]:
    own = tuple(seconds - beside for seconds, beside in zip(whole.samples, audited, strict=True))
    return {
        "method": name, "kept_mass": kept[0], "density": kept[1], "seconds": vars(Spread.of(own)),
        "speedup": vars(Spread.of(_ratios(sdpa.samples, own))), "audit": vars(Spread.of(_ratios(tuple(audited), own))),
        "disturbed": sdpa.disturbed + whole.disturbed,
    }  # fmt: skip


def _seconds(model: Any, inputs: dict[str, Any], way: Callable[[], Any], calls: int) -> float:
    """Of forwards; setting the model is not timed."""
    with way():
        start = perf_counter()
        for _ in range(calls):
            model(**inputs)
        return perf_counter() - start


@contextmanager
def _dense(model: Any) -> Iterator[None]:
    model.set_attn_implementation("sdpa")
    yield


@contextmanager
def _audited(model: Any, implementation: str, spent: list[float]) -> Iterator[None]:
    """Audited; the seconds that this takes are appended to ``spent``."""
    model.set_attn_implementation(implementation)
    see, seconds = Audit._see, []

    def clocked(self: Audit, call: Any) -> None:
        start = perf_counter()
        see(self, call)
        seconds.append(perf_counter() - start)

    Audit._see = clocked
    try:
        with audit(model, share=_SHARE):
            yield
    finally:
        Audit._see = see
        spent.append(sum(seconds))


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
