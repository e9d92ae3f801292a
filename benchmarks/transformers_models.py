"""Hold ``dynattn:dense`` against a model's own attention, on tiny random models of every architecture of Transformers.

    python benchmarks/transformers_models.py              # half an hour: results/transformers/models.json, and the page
    python benchmarks/transformers_models.py bert llama   # these alone, printed
    python benchmarks/transformers_models.py table        # docs/integrations/transformers-models.md from the record

Each model is loaded with ``dynattn:dense``, built from its config with it, and switched to it; text with and without
padding, in one pass and through a cache. Nothing is timed. A model runs in a process that may die.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import random
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from marked import markdown, rewritten
from tiny_models import BATCH, LENGTH, RECIPES, flat, tiny_config, tiny_inputs, tiny_model

RECORD = Path(__file__).parent / "results" / "transformers" / "models.json"
PAGE = Path(__file__).parent.parent / "docs" / "integrations" / "transformers-models.md"
START, END = "<!-- models: start -->", "<!-- models: end -->"
OURS = "dynattn:dense"
WAYS = ("load", "config", "set")
TOLERANCE = 3e-6  # relative to the largest value, in float64; some models take their softmax in float32
SECONDS = 40  # for one model

MEANING = {
    "exact": "all attention modules take part, and outputs are the model's own",
    "partly covered": "outputs are the model's own; a warning names modules that keep attention of their own",
    "keeps its own": "outputs are the model's own; a warning says that nothing takes part",
    "no attention": "outputs are the model's own; it has no attention, and a warning says that nothing takes part",
    "refused": "a call raises an error that says why",
    "random": "the model's own outputs differ from call to call, so nothing can be compared",
    "not built": "no tiny model of it was built, or no inputs were found for it",
    "silent": "right, but no warning named what does not take part",
    "wrong": "outputs differ, or an error of somebody else's",
}


def main(arguments: list[str]) -> int:
    """Measure, print or write the page."""
    if arguments == ["table"]:
        PAGE.write_text(with_table(PAGE.read_text(), json.loads(RECORD.read_text())))
        return 0
    if arguments[:1] == ["worker"]:
        for kind in arguments[1:]:
            print(json.dumps(examined(kind)), flush=True)
        return 0
    found = []
    for one in _in_processes(arguments or kinds()):
        print(one["model"], one["result"], one.get("words", ""), sep="\t", flush=True)
        found.append(one)
    if not arguments:
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(written(found))
        PAGE.write_text(with_table(PAGE.read_text(), json.loads(RECORD.read_text())))
    return int(any(one["result"] in ("wrong", "silent") for one in found))


def kinds() -> list[str]:
    """The model types of the installed Transformers that AutoModel knows."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return list(MODEL_MAPPING_NAMES)


def written(found: list[dict[str, Any]]) -> str:
    """The record: a line a model."""
    import transformers

    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    known = len(kinds())
    lines = ",\n".join(f"    {json.dumps(one)}" for one in found)
    return f'{{\n  "versions": {json.dumps(versions)},\n  "known": {known},\n  "models": [\n{lines}\n  ]\n}}\n'


def with_table(page: str, record: dict[str, Any]) -> str:
    """The page with the table of a record."""
    rows = []
    for result, meaning in MEANING.items():
        models = [one for one in record["models"] if one["result"] == result]
        if models:
            rows.append((f"**{result}**: {meaning}", str(len(models)), ", ".join(one["model"] for one in models)))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    table = markdown(("", "models", "`model_type`"), rows)
    words = [(one["model"], one["words"]) for one in record["models"] if one["result"] in ("partly covered", "refused")]
    text = f"{versions}; {len(record['models'])} of {record['known']} model types.\n\n{table}\n\n" + markdown(
        ("`model_type`", "says"), words
    )
    return rewritten(page, START, text, END, "transformers_models")


def examined(kind: str) -> dict[str, Any]:
    """What one architecture does, as the record holds it."""
    from transformers import CONFIG_MAPPING, AutoModel

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    failed = None
    for recipe in RECIPES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = tiny_model(AutoModel, tiny_config(CONFIG_MAPPING[kind], recipe))
                cases = _cases(model)
                expected = [_run(model, inputs) for inputs in cases]
        except Exception as error:  # whatever anybody's model raises
            failed = failed or error
            if isinstance(error, (ImportError, TimeoutError)):
                return {"model": kind, "result": "not built", "words": _short(error)}
            continue
        if any(value.isfinite().all() for outputs in expected for value in outputs.values()):
            break
    else:
        return {"model": kind, "result": "not built", "words": _short(failed or ValueError("nothing finite"))}
    try:
        return _compared(kind, model, cases, expected)
    except Exception as error:
        result = "not built" if isinstance(error, TimeoutError) else "wrong"
        return {"model": kind, "result": result, "words": _short(error)}
    finally:
        signal.alarm(0)


def _late(*_: Any) -> None:
    raise TimeoutError(f"takes more than {SECONDS} s")


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]


def _cases(model: Any) -> list[dict[str, Any]]:
    """Inputs that the model takes, without and with padding."""
    found = []
    for padded in (False, True):
        failed: Exception | None = None
        for inputs in tiny_inputs(model, padded):
            if padded and "attention_mask" not in inputs:
                continue
            try:
                _run(model, inputs)
            except TimeoutError:
                raise
            except Exception as error:
                failed = failed or error
            else:
                found.append(inputs)
                break
        else:
            if not padded:
                raise failed or ValueError("no inputs are known for it")
    return found


@torch.no_grad()
def _run(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The outputs of one pass and, where the model gives back a cache, of a second one behind it."""
    _seed()
    output = model(**inputs)
    found = dict(flat(output))
    if set(inputs) == {"input_ids", "attention_mask"} and getattr(output, "past_key_values", None) is not None:
        with contextlib.suppress(_CannotContinue):
            found |= {f"cached.{name}": value for name, value in _continued(model, inputs).items()}
    return found


class _CannotContinue(Exception):
    pass


def _continued(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The outputs of a text in three pieces."""
    import transformers

    if getattr(model.config, "is_encoder_decoder", False):
        raise _CannotContinue
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    found: dict[str, torch.Tensor] = {}
    for start, stop in ((0, 6), (6, 7), (7, LENGTH)):
        _seed()
        output = model(
            input_ids=inputs["input_ids"][:, start:stop], attention_mask=inputs["attention_mask"][:, :stop],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        found[f"{start}"] = output[0]
    return found


def _seed() -> None:
    import numpy

    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)


def _compared(
    kind: str, model: Any, cases: list[dict[str, Any]], expected: list[dict[str, torch.Tensor]]
) -> dict[str, Any]:
    from dynattn.integrations.transformers import coverage, observing, register

    register()
    if any(_differ(expected[i], _run(model, inputs), inputs) for i, inputs in enumerate(cases)):
        return {"model": kind, "result": "random"}
    others = _by_sdpa(model, cases)
    said: dict[str, list[str]] = {}
    calls: list[Any] = []
    parts = None
    for way in WAYS:
        with warnings.catch_warnings(record=True) as caught, _logged() as log:
            warnings.simplefilter("always")
            right = expected if way == "set" else [_run(_made(model, way, "eager"), inputs) for inputs in cases]
            try:
                ours = _made(model, way, OURS)
                with observing(calls.append):
                    actual = [_run(ours, inputs) for inputs in cases]
            except (ValueError, NotImplementedError) as error:
                if not str(error).startswith(("dynattn", "attention:")):
                    return {"model": kind, "result": "wrong", "words": f"{way}: {_short(error)}"}
                return {"model": kind, "result": "refused", "words": f"{way}: {_short(error)}"}
        said[way] = [str(one.message) for one in caught if str(one.message).startswith("dynattn:")]
        said[way] += [line for line in log if "setting its attention implementation" in line]
        for index, inputs in enumerate(cases):
            off = _differ(right[index], actual[index], inputs)
            if off and others and not _differ(others[index], actual[index], inputs):
                off = None
            if off:
                return {"model": kind, "result": "wrong", "words": f"{way}: {'padded' if index else 'plain'}: {off}"}
        if way == "load":
            parts = coverage(ours)
    return _verdict(kind, parts, said, calls)


def _verdict(kind: str, parts: Any, said: dict[str, list[str]], calls: list[Any]) -> dict[str, Any]:
    rest = {part.kind for part in (*parts.own, *parts.unknown, *parts.elsewhere)}
    found = {
        "model": kind, "taking_part": len(parts.taking_part), "own": sorted(rest), "calls": len(calls),
        "words": next((lines[0] for lines in said.values() if lines), ""),
    }  # fmt: skip
    if not rest and parts.taking_part:
        return {**found, "result": "exact"}
    if not all(said.values()):
        return {**found, "result": "silent", "words": f"nothing said on {[way for way in WAYS if not said[way]]}"}
    if parts.taking_part:
        return {**found, "result": "partly covered"}
    return {**found, "result": "keeps its own" if rest else "no attention"}


def _made(model: Any, way: str, implementation: str) -> Any:
    """The same model with another implementation, by one of the ways to get there."""
    if way == "set":
        other = copy.deepcopy(model)
        other.set_attn_implementation(implementation)
        return other
    if way == "config":
        config = copy.deepcopy(model.config)
        other = type(model)._from_config(config, attn_implementation=implementation, experts_implementation="eager")
        other = other.double().eval()
        other.load_state_dict(model.state_dict())
        return other
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        options = {"dtype": torch.float64, "experts_implementation": "eager"}
        return type(model).from_pretrained(folder, attn_implementation=implementation, **options).eval()


def _by_sdpa(model: Any, cases: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]] | None:
    """What ``sdpa`` gives, where there is one: it and ``eager`` may differ where all keys are masked."""
    if not model._supports_sdpa:
        return None
    try:
        other = _made(model, "config", "sdpa")
        return [_run(other, inputs) for inputs in cases]
    except Exception:
        return None


def _differ(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor], inputs: dict[str, Any]) -> str | None:
    """The first output that is not the same, where it is not padding."""
    if set(expected) != set(actual):
        return f"other outputs: {sorted(set(expected) ^ set(actual))}"
    for name, right in expected.items():
        found = actual[name]
        if right.shape != found.shape:
            return f"{name} has another shape"
        mask = inputs.get("attention_mask")
        if mask is not None and right.dim() >= 2 and right.shape[0] == BATCH:
            start = {"cached.6": 6, "cached.7": 7}.get(name, 0)
            if right.shape[1] == mask[:, start : start + right.shape[1]].shape[1] and (
                right.shape[1] == LENGTH or name.startswith("cached.")
            ):
                seen = mask[:, start : start + right.shape[1]].bool()
                right, found = right[seen], found[seen]
        off = (right - found).abs()
        off = off[~(right.isnan() & found.isnan())].nan_to_num(torch.inf)
        largest = right.nan_to_num().abs().max() if right.numel() else torch.tensor(1.0)
        if off.numel() and off.max() > TOLERANCE * max(float(largest), 1e-3):
            return f"{name} differs by {float(off.max()):.2g} of {float(largest):.2g}"
    return None


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What Transformers logs meanwhile."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.disable(logging.NOTSET)
    logger = logging.getLogger("transformers")
    before, propagates = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield lines
    finally:
        logger.handlers, logger.propagate = before, propagates
        logging.disable(logging.WARNING)


def _in_processes(todo: list[str]) -> Iterator[dict[str, Any]]:
    """Examine models in one process after the other; one that dies costs the model that it was at."""
    while todo:
        command = [sys.executable, __file__, "worker", *todo[:40]]
        done = 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    done += 1
                    yield json.loads(line)
        if done < len(todo[:40]):
            yield {"model": todo[done], "result": "not built", "words": "the process died"}
            done += 1
        todo = todo[done:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
