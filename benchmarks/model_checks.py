"""What ``dynattn:dense`` does to one model: its outputs against the model's own, and whether the user is told.

Outputs match where they differ by no more than :data:`TOLERANCE` of the largest value of that output from those of
``eager`` or of ``sdpa``: the two differ where all keys of a query are masked; or else from those of the model as
Transformers loads it by itself, since Grounding DINO's text model adds a bool mask with ``eager``. In float32, or in
float64 where they do not match in float32: rounding may turn a choice of the largest. Outputs at padding are left out,
and so are attention weights that ``eager`` returns unasked.

Attention that is left out without a word is looked for while the model runs: modules that are said to take part and run
without a call, and softmaxes over the keys in modules that are not named.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from attention_watch import watching
from tiny_models import BATCH, LENGTH, flat
from torch import Tensor

from dynattn.integrations.transformers import coverage, register

OURS = "dynattn:dense"
WAYS = ("load", "set")
TOLERANCE = 1e-4
PIECES = ((0, 6), (6, 7), (7, LENGTH))  # of a text that is given through a cache

Inputs = dict[str, Any]
Outputs = dict[str, Tensor]


def checked(model: Any, cases: list[Inputs]) -> dict[str, Any]:
    """What becomes of a model with eager attention, as fields of its row in the record.

    Args:
        model: in float32, for evaluation; it is left as it is. What does not match is tried again in float64.
        cases: keyword arguments for its forward.

    Returns:
        ``result``, ``words``, and, where outputs are the model's own, how many modules take part, how many of them ran,
        the classes of those that do not, and which implementations the outputs match.
    """
    register()
    row = {"dtype": "float32", **_checked(model, cases)}
    if row["result"] != "wrong":
        return row
    with _unless_it_fails():  # a choice of the largest, or large numbers that cancel, may turn on rounding
        again = _checked(copy.deepcopy(model).double(), [_double(inputs) for inputs in cases])
        if again["result"] != "wrong":
            return {"dtype": "float64", **again}
    return row


def _checked(model: Any, cases: list[Inputs]) -> dict[str, Any]:
    expected = {"eager": [run(model, inputs) for inputs in cases]}
    if model._supports_sdpa:
        with _unless_it_fails():  # Transformers' own sdpa may fail with these inputs
            other = switched(model, "set", "sdpa")
            expected["sdpa"] = [run(other, inputs) for inputs in cases]
    found = []
    for way in WAYS:
        one = _by(model, way, cases, expected)
        if "result" in one:
            if one["result"] == "wrong" and _is_random(model, cases, expected["eager"]):
                return {"result": "random", "words": "the same call gives other outputs with the same seed"}
            return one
        found.append(one)
    return min((_verdict(one) for one in found), key=lambda one: _WORST.index(one["result"]))


_WORST = ("silent", "keeps its own", "partly covered", "no attention", "exact")


def switched(model: Any, way: str, implementation: str | None) -> Any:
    """The same model with another implementation, by one of the ways to get there; None is Transformers' own choice."""
    if way == "set":
        other = copy.deepcopy(model)
        other.set_attn_implementation(implementation)
        return other
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        options = {"dtype": model.dtype, "experts_implementation": "eager"}
        return type(model).from_pretrained(folder, attn_implementation=implementation, **options).eval()


@torch.no_grad()
def run(model: Any, inputs: Inputs) -> Outputs:
    """The outputs of one pass and, where a padded text can be given in pieces through a cache, of the pieces."""
    _seed()
    output = model(**inputs)
    found = dict(flat(output))
    padded = set(inputs) == {"input_ids", "attention_mask"} and not bool(inputs["attention_mask"].all())
    if padded and getattr(output, "past_key_values", None) is not None:
        with contextlib.suppress(_NoPieces):
            found |= _in_pieces(model, inputs)
    return found


def difference(expected: Outputs, actual: Outputs, inputs: Inputs) -> str | None:
    """The first output that does not match, in words."""
    for name in set(expected) ^ set(actual):
        if "attentions" not in name or name in actual:
            return f"other outputs: {name}"
    for name, found in actual.items():
        right = expected[name]
        if right.shape != found.shape:
            return f"{name} has another shape"
        seen = _not_padding(name, right, inputs)
        right, found = (right, found) if seen is None else (right[seen], found[seen])
        off = (right - found).abs()
        off = off[~((right == found) | (right.isnan() & found.isnan()))].nan_to_num(torch.inf)
        finite = right[right.isfinite()].abs()
        largest = float(finite.max()) if finite.numel() else 1.0
        if off.numel() and off.max() > TOLERANCE * max(largest, 1e-3):
            return f"{name} differs by {float(off.max()):.2g}, of {largest:.2g}"
    return None


def _by(model: Any, way: str, cases: list[Inputs], expected: dict[str, list[Outputs]]) -> dict[str, Any]:
    """What one way of asking for dynattn leads to; a ``result`` where it is no matter of coverage."""
    with warnings.catch_warnings(record=True) as caught, _logged() as log:
        warnings.simplefilter("always")
        try:
            ours = switched(model, way, OURS)
            parts = coverage(ours)
            with watching(ours, parts) as watch:
                actual = [run(ours, inputs) for inputs in cases]
            after = coverage(ours)  # BigBird exchanges its attention when a text is short
        except (TimeoutError, MemoryError):
            raise
        except Exception as error:  # whatever anybody's model raises
            own = str(error).startswith(("dynattn", "attention:"))
            return {"result": "refused" if own else "wrong", "words": f"{way}: {short(error)}"}
    said = [str(one.message) for one in caught if str(one.message).startswith("dynattn:")]
    said += [line for line in log if "setting its attention implementation" in line]
    matched = _matched(cases, actual, expected)
    for name in ("eager", None):  # some models are not what was saved, or mix implementations unless they are told
        if not matched and (way == "load" or name is None):
            other = switched(model, "load", name)
            matched = _matched(cases, actual, {name or "default": [run(other, inputs) for inputs in cases]})
    if not matched:
        off = [difference(expected["eager"][i], actual[i], inputs) for i, inputs in enumerate(cases)]
        which = next(i for i, words in enumerate(off) if words) if any(off) else 0
        return {"result": "wrong", "words": f"{way}: {('plain', 'padded')[which]}: {off[which]}"}
    return {"way": way, "parts": parts, "after": after, "said": said, "matches": matched, "watch": watch}


def _matched(cases: list[Inputs], actual: list[Outputs], expected: dict[str, list[Outputs]]) -> list[str]:
    """The implementations that all outputs match; ``either`` where some match one of them and others the other."""
    same = {
        name: [difference(outputs[i], actual[i], inputs) is None for i, inputs in enumerate(cases)]
        for name, outputs in expected.items()
    }
    whole = [name for name, matches in same.items() if all(matches)]
    if whole:
        return whole
    return ["either"] if all(map(any, zip(*same.values(), strict=True))) else []


def _verdict(one: dict[str, Any]) -> dict[str, Any]:
    parts, after, watch, said = one["parts"], one["after"], one["watch"], one["said"]
    rest = sorted({part.kind for at in (parts, after) for part in (*at.own, *at.unknown, *at.elsewhere)})
    row = {
        "result": "exact", "words": said[0] if said else "", "matches": one["matches"],
        "taking_part": len(parts.taking_part), "ran": len(watch.ran), "own": rest,
    }  # fmt: skip
    if watch.ran - watch.called:
        names = sorted({type(module).__name__ for module in watch.ran - watch.called})
        return {**row, "result": "silent", "words": f"{one['way']}: run without a call: {', '.join(names)}"}
    unnamed = sorted(kinds[-1] for kinds in watch.attending if not set(kinds) & set(rest))
    if unnamed:
        return {**row, "result": "silent", "words": f"{one['way']}: attend and are not named: {', '.join(unnamed)}"}
    unsaid = {part.kind for part in parts.elsewhere if not any(part.kind in words for words in said)}
    if unsaid:
        words = f"{one['way']}: keep another implementation and are not named: {', '.join(sorted(unsaid))}"
        return {**row, "result": "silent", "words": words}
    if not rest and parts.taking_part:
        return row
    if not said:
        return {**row, "result": "silent", "words": f"{one['way']}: nothing is said of {', '.join(rest) or 'it'}"}
    return {**row, "result": "partly covered" if parts.taking_part else "keeps its own" if rest else "no attention"}


class _NoPieces(Exception):
    """The model takes no cache from outside."""


def _in_pieces(model: Any, inputs: Inputs) -> Outputs:
    from transformers import DynamicCache

    if getattr(model.config, "is_encoder_decoder", False):
        raise _NoPieces
    cache = DynamicCache(config=model.config.get_text_config())
    found: Outputs = {}
    for start, stop in PIECES:
        _seed()
        ids, mask = inputs["input_ids"][:, start:stop], inputs["attention_mask"][:, :stop]
        try:
            output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        except ValueError as error:
            if "cache of its own" in str(error):
                raise _NoPieces from error
            raise
        found[f"piece {start}"] = output[0]
    return found


def _not_padding(name: str, output: Tensor, inputs: Inputs) -> Tensor | None:
    """Where an output is not that of padding; None where it has no axis of tokens."""
    mask = inputs.get("attention_mask")
    if mask is None or output.dim() < 2 or output.shape[0] != BATCH:
        return None
    start, stop = next(((a, b) for a, b in PIECES if name == f"piece {a}"), (0, LENGTH))
    return mask[:, start:stop].bool() if output.shape[1] == stop - start else None


def _is_random(model: Any, cases: list[Inputs], expected: list[Outputs]) -> bool:
    return any(difference(expected[i], run(model, inputs), inputs) for i, inputs in enumerate(cases))


def short(error: BaseException) -> str:
    """An error in a line, without the folder of this machine that packages lie in."""
    said = str(error).replace(f"{Path(torch.__file__).parents[1]}/", "")
    return f"{type(error).__name__}: {' '.join(said.split())}"[:240]


@contextlib.contextmanager
def _unless_it_fails() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise
    except Exception:
        return


def _double(inputs: Inputs) -> Inputs:
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def _seed() -> None:
    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What Transformers logs meanwhile."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    before, propagates, disabled = logger.handlers[:], logger.propagate, logging.root.manager.disable
    logging.disable(logging.NOTSET)
    logger.handlers, logger.propagate = [handler], False
    try:
        yield lines
    finally:
        logger.handlers, logger.propagate = before, propagates
        logging.disable(disabled)
