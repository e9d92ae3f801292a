"""Measures what DSA, Scatterbrain and efficient attention lose and cost on real queries, keys and values.

    python benchmarks/family_features.py minilm      # output error, kept mass; also smollm2, dinov2
    python benchmarks/family_features.py retrieval   # MiniLM's quality without training
    python benchmarks/family_features.py budget-minilm  # Scatterbrain against either of its parts at equal budget
    python benchmarks/family_features.py predictor   # DSA's trained predictor against untrained, true top-k and random
    python benchmarks/family_features.py time        # against SDPA, interleaved; wants an idle machine
    python benchmarks/family_features.py table       # the tables of docs/methods from the records

Each takes one minute or less of one core, time excepted, and writes benchmarks/results/family/features-<name>.json.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from family_tables import write_tables
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import dynattn
from dynattn import DSA, NM, EfficientAttention, Method, Random, Scatterbrain, TopK, metrics
from dynattn.integrations import dsa
from dynattn.integrations.transformers import Call, observing, register
from dynattn.lab.data.packages import folder
from dynattn.lab.inspect import from_image, from_text
from dynattn.lab.inspect.measure import scores
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.records import write_json
from dynattn.lab.scoring import evaluate
from dynattn.lab.statistics import quality
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.texts import Text
from dynattn.lab.timing import interleaved
from dynattn.maths.buckets import hashes
from dynattn.methods import MixingMethod
from dynattn.methods.dsa import top_of_runs

RESULTS = Path(__file__).parent / "results" / "family"
EVERY = {"minilm": 1, "smollm2": 5, "dinov2": 4}  # every layer, every fifth or every fourth layer is looked at
METHODS: tuple[Method, ...] = (
    TopK(ratio=0.1), DSA(0.1), DSA(0.1, bits=8), DSA(0.1, 1.0, 8), DSA(0.1, 1.0, 8, together=8), Random(0.1),
    Scatterbrain(64, 16, 2), Scatterbrain(64, 8, 2), Scatterbrain(64, rounds=0), Scatterbrain(256, rounds=0),
    EfficientAttention(),
)  # fmt: skip
TASK_METHODS = (
    TopK(ratio=0.1), DSA(0.1), DSA(0.1, 1.0, 8), Scatterbrain(64, 8, 2), Scatterbrain(64, rounds=0),
    EfficientAttention(),
)  # fmt: skip
ITEMS = 24  # how many passages the retrieval task has
SEEDS = 3
# Scatterbrain's features, buckets and rounds
SIZES = {"minilm": ((64, 32, 2), (64, 16, 2), (128, 16, 2), (64, 8, 2)), "dinov2": ((64, 8, 2),)}
STEPS = 80  # the predictors are trained for so many steps


def stories() -> tuple[Text, ...]:
    """The 300 news stories of the Lee corpus, which gensim carries: short, and read in no time."""
    corpus = folder("gensim", "4.4.0") / "test" / "test_data" / "lee_background.cor"
    lines = corpus.read_text(encoding="utf-8").splitlines()
    return tuple(Text(f"story {number}", line.strip()) for number, line in enumerate(lines, start=1))


def _calls(pretrained: Pretrained) -> tuple[str, list[Call], dict[str, Any]]:
    """What dense attention is called with on the default text or image, in some layers."""
    if pretrained.kind == "vision":
        subject = from_image(pretrained, None)
    else:
        subject = from_text(pretrained, None, "A news article", 512)
    found: list[Call] = []
    register(*METHODS)
    pretrained.model.set_attn_implementation("dynattn:dense")
    with observing(found.append):
        pretrained.model(**subject.inputs)
    return subject.title, found[:: EVERY[pretrained.name]], dict(subject.inputs)


def _dense(call: Call) -> Tensor:
    return dynattn.attention(call.query, call.key, call.value, NM(1, 1), causal=call.causal, scale=call.scale)


def _error(out: Tensor, dense: Tensor) -> float:
    """Relative error, mean over heads."""
    return float(metrics.relative_error(out, dense).mean())


def _mean_of_values(call: Call) -> Tensor:
    """What a method that knows nothing would give: the mean of the values that a query sees."""
    value = call.value.repeat_interleave(call.query.shape[1] // call.value.shape[1], 1)
    if not call.causal:
        return value.mean(2, keepdim=True).expand_as(value)
    return value.cumsum(2) / torch.arange(1, value.shape[2] + 1).unsqueeze(-1)


def _one(method: Method, calls: Sequence[Call]) -> dict[str, Any]:
    """Means over all heads of all layers."""
    errors, kept, density = [], [], []
    for call in calls:
        arguments = {"causal": call.causal, "scale": call.scale}
        if isinstance(method, MixingMethod):
            out = dynattn.attention(call.query, call.key, call.value, method, **arguments)
        else:
            out, aux = dynattn.attention(call.query, call.key, call.value, method, return_aux=True, **arguments)
            kept.append(float(aux.kept_mass.mean()))
            density.append(float(aux.density.mean()))
        errors.append(_error(out, _dense(call)))
    found: dict[str, Any] = {"error": fmean(errors), "error_by_layer": errors}
    return found | ({"kept_mass": fmean(kept), "density": fmean(density)} if kept else {})


@torch.inference_mode()
def errors(name: str) -> dict[str, Any]:
    """Output error and kept mass on one model; of a decoder also the negative log-likelihood of the text."""
    pretrained = load(name)
    title, calls, inputs = _calls(pretrained)
    rows = {method.name: _one(method, calls) for method in METHODS}
    rows["mean of values"] = {"error": fmean(_error(_mean_of_values(call), _dense(call)) for call in calls)}
    if pretrained.kind == "decoder":
        rows["sdpa"] = {"nll": _nll(pretrained, "sdpa", inputs)}
        for method in TASK_METHODS:
            rows[method.name]["nll"] = _nll(pretrained, f"dynattn:{method.name}", inputs)
    layers = [call.layer for call in calls]
    return {"model": pretrained.description, "subject": title, "layers": layers, "methods": rows}


def _nll(pretrained: Pretrained, implementation: str, inputs: dict[str, Any]) -> float:
    """Nats a token, of the text that the errors are of."""
    pretrained.model.set_attn_implementation(implementation)
    inputs = {"input_ids": inputs["input_ids"]}  # no padding: the causal flag in place of a mask
    logits = pretrained.model(**inputs, use_cache=False).logits[0]
    return float(cross_entropy(logits[:-1].float(), inputs["input_ids"][0, 1:]))


@torch.inference_mode()
def retrieval() -> dict[str, Any]:
    """MiniLM without training: MRR@10 by method, and its paired difference to dense attention."""
    pretrained = load("minilm")
    register(*METHODS)
    task = Retrieval(items=ITEMS, tokens=192, queries=2, per_text=1, texts=stories())
    data = task.prepare(pretrained)
    dense = evaluate(task, data, pretrained, "sdpa", lambda: None)
    found = {"sdpa": quality("sdpa", dense, dense, data, True).model_dump()}
    for method in TASK_METHODS:
        outcome = evaluate(task, data, pretrained, f"dynattn:{method.name}", lambda: None)
        found[method.name] = quality(method.name, outcome, dense, data, True).model_dump()
    return {"data": data.summary, "methods": found}


@torch.inference_mode()
def budget(name: str) -> dict[str, Any]:
    """Scatterbrain and either part alone with the same numbers a query: features plus exact pairs."""
    calls = _calls(load(name))[1]
    rows = []
    for features, buckets, rounds in SIZES[name]:
        by_seed = [_budget(Scatterbrain(features, buckets, rounds, seed=seed), calls) for seed in range(SEEDS)]
        row: dict[str, Any] = {"features": features, "buckets": buckets, "rounds": rounds}
        for key in by_seed[0]:
            values = [found[key] for found in by_seed]
            row[key] = {"mean": fmean(values), "deviation": stdev(values)}
        rows.append(row)
    return {"model": name, "seeds": SEEDS, "rows": rows}


def _budget(method: Scatterbrain, calls: Sequence[Call]) -> dict[str, float]:
    pairs = fmean(float(_near(method, call).sum(-1, dtype=torch.float32).mean()) for call in calls)
    rich = Scatterbrain(round(method.features + pairs), rounds=0, seed=method.seed)
    wide, wide_pairs = method, pairs
    while wide_pairs < method.features + pairs:  # the last round may go beyond: in favour of the sparse part
        wide = Scatterbrain(method.features, method.buckets, wide.rounds + 1, seed=method.seed)
        wide_pairs = fmean(float(_near(wide, call).sum(-1, dtype=torch.float32).mean()) for call in calls)
    alone = Scatterbrain(method.features, rounds=0, seed=method.seed)

    def mean(out: Callable[[Call], Tensor]) -> float:
        return fmean(_error(out(call), _dense(call)) for call in calls)

    return {
        "pairs": pairs, "both": mean(lambda call: _out(method, call)),
        "features_alone": mean(lambda call: _out(alone, call)), "pairs_alone": mean(lambda call: _sparse(method, call)),
        "features_same_budget": mean(lambda call: _out(rich, call)),
        "pairs_same_budget": mean(lambda call: _sparse(wide, call)), "pairs_of_same_budget": wide_pairs,
    }  # fmt: skip


def _out(method: Method, call: Call) -> Tensor:
    return dynattn.attention(call.query, call.key, call.value, method, scale=call.scale)


def _near(method: Scatterbrain, call: Call) -> Tensor:
    """S, bool (batch, heads, q_len, kv_len)."""
    turns = method.draw(call.query.shape[-1])[1].to(call.query)
    q, k = hashes(call.query, turns), hashes(call.key, turns)
    return (q.unsqueeze(3) == k.unsqueeze(2)).any(-1)


def _sparse(method: Scatterbrain, call: Call) -> Tensor:
    """The softmax over S alone; a query without a pair gets 0."""
    return _masked(call, _near(method, call))


def _masked(call: Call, mask: Tensor) -> Tensor:
    return dynattn.attention(call.query, call.key, call.value, NM(1, 1), attn_mask=mask, scale=call.scale)


def predictor() -> dict[str, Any]:
    """Train the predictors of MiniLM's six layers on news, look at the kept mass on stories they never saw."""
    pretrained, length = load("minilm"), 256
    runs = [ids for story in stories() if (ids := _ids(pretrained, story.body, length)) is not None]
    held_out, pool = runs[:6], runs[6:]
    random.Random(0).shuffle(pool)
    batches = [{"input_ids": ids.unsqueeze(0)} for ids in (pool * STEPS)[:STEPS]]
    record: dict[str, Any] = {
        "model": pretrained.description, "steps": STEPS, "tokens": length, "share": 0.25, "bits": 4,
        "trained_on": len(pool), "held_out": len(held_out),
    }  # fmt: skip
    predictors = dsa.new(pretrained.model, batches[0])
    record["untrained"] = _guesses(pretrained, predictors, held_out)
    losses: list[float] = []
    dsa.fit(pretrained.model, predictors, batches, on_step=lambda _, loss: losses.append(loss))
    record["trained"] = _guesses(pretrained, predictors, held_out)
    record["losses"] = losses
    return record


def _ids(pretrained: Pretrained, body: str, length: int) -> Tensor | None:
    """The first ``length`` tokens of a text, or None where it has fewer."""
    ids = pretrained.processor(body, return_tensors="pt", truncation=True, max_length=length)["input_ids"][0]
    return ids if len(ids) == length else None


@torch.no_grad()
def _guesses(pretrained: Pretrained, predictors: dict[str, Any], texts: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Kept mass by keep ratio and queries that share keys, mean over texts, layers and heads."""
    kept: dict[tuple[float, int], dict[str, list[float]]] = {}
    for ids in texts:
        for s, guesses in _compared(pretrained, predictors, ids):
            allowed = torch.ones_like(s, dtype=torch.bool)
            for ratio, together in ((0.05, 1), (0.1, 1), (0.25, 1), (0.1, 8)):
                row = kept.setdefault((ratio, together), {name: [] for name in guesses})
                for name, guess in guesses.items():
                    choice = top_of_runs(guess, allowed, ratio, together)
                    row[name].append(float(metrics.kept_mass(s, choice).mean()))
    return [
        {"ratio": ratio, "together": together} | {name: fmean(found) for name, found in row.items()}
        for (ratio, together), row in kept.items()
    ]


def _compared(
    pretrained: Pretrained, predictors: dict[str, Any], ids: Tensor
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Scores of every layer, and what is guessed of them."""
    calls: list[Call] = []
    pretrained.model.set_attn_implementation("dynattn:dense")
    modules = {pretrained.model.get_submodule(name): predictor for name, predictor in predictors.items()}
    inputs: dict[Any, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, args: inputs.update({m: args[0]})) for m in modules]
    with observing(calls.append):
        pretrained.model(input_ids=ids.unsqueeze(0))
    for hook in hooks:
        hook.remove()
    found = []
    for call in calls:
        s = torch.stack([scores(call, head) for head in range(call.query.shape[1])]).unsqueeze(0)
        noise = torch.rand(s.shape, generator=torch.Generator().manual_seed(call.layer))
        per_head = {f"dsa k={k} int{bits}": DSA(0.1, k, bits).predict(call.query, call.key, 1.0)
                    for k, bits in ((0.25, 4), (1.0, 8))}  # fmt: skip
        guesses = {"predictor": modules[call.module](inputs[call.module]), "true": s, "random": noise} | per_head
        found.append((s, guesses))
    return found


@torch.inference_mode()
def time() -> dict[str, Any]:
    """Seconds of a call and its speed-up over SDPA, normal random data, (1, 4, length, 64)."""
    rows = []
    for length in (512, 2048, 8192):
        generator = torch.Generator().manual_seed(length)
        q, k, v = (torch.randn(1, 4, length, 64, generator=generator) for _ in range(3))
        for causal in (False, True):
            chosen: list[Method] = [EfficientAttention(), Scatterbrain(64, 32, 2), Scatterbrain(64, rounds=0)]
            chosen += [DSA(0.1), TopK(ratio=0.1)] if length < 8192 else []
            functions: dict[str, Callable[[], object]] = {
                "sdpa": lambda q=q, k=k, v=v, c=causal: scaled_dot_product_attention(q, k, v, is_causal=c)
            }
            for m in chosen:
                functions[m.name] = lambda q=q, k=k, v=v, c=causal, m=m: dynattn.attention(q, k, v, m, causal=c)
            timings = interleaved(functions, seconds=12.0, least=3, min_sample=None)
            for name, timing in timings.items():
                faster = timing.speedup(timings["sdpa"])
                rows.append(
                    {"length": length, "causal": causal, "method": name, "seconds": timing.median,
                     "speedup": [faster.q1, faster.median, faster.q3], "rounds": len(timing.samples),
                     "disturbed": timing.disturbed}
                )  # fmt: skip
    return {"rows": rows}


MEASUREMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: partial(errors, name) for name in EVERY},
    "retrieval": retrieval,
    **{f"budget-{name}": partial(budget, name) for name in SIZES},
    "predictor": predictor,
    "time": time,
}


def main(arguments: Sequence[str]) -> int:
    """Measure, or write the tables."""
    if list(arguments) == ["table"]:
        write_tables({name: json.loads(_path(name).read_text()) for name in MEASUREMENTS if _path(name).exists()})
        return 0
    if len(arguments) != 1 or arguments[0] not in MEASUREMENTS:
        print(__doc__)
        return 2
    before = machine()
    record = {"machine": before} | MEASUREMENTS[arguments[0]]()
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(_path(arguments[0]), record)
    return 0


def _path(name: str) -> Path:
    return RESULTS / f"features-{name}.json"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
