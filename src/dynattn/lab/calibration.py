"""Texts by which methods see what weights read, before they choose: Wikipedia articles, cut to a few tokens each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.tasks.embedding import inputs, longest
from dynattn.lab.tasks.texts import wikipedia
from dynattn.sparsity import InputStatistics, Kept, WeightSparsity, calibrate

TEXTS, TOKENS = 32, 256
"""So many articles for statistics, and so many tokens of each article at the most."""

_known: WeakKeyDictionary[nn.Module, Mapping[str, InputStatistics]] = WeakKeyDictionary()


@contextmanager
def thinned_out(pretrained: Pretrained, method: WeightSparsity) -> Iterator[Kept]:
    """While active, the weights that a method does not keep are 0.

    Args:
        pretrained: the model. Where the method looks at inputs, its attention is set to dense.
        method: chooses.

    Yields:
        How many weights are kept.

    Raises:
        ValueError: the method looks at inputs, and the model does not read text.
        dynattn.lab.tasks.DataMissingError: the articles are not on this machine.
    """
    with method.apply(pretrained.model, statistics(pretrained) if method.looks_at_inputs else None) as kept:
        yield kept


def statistics(pretrained: Pretrained) -> Mapping[str, InputStatistics]:
    """What a model's linear layers read; looked at once for each model.

    Args:
        pretrained: an encoder or a decoder; its attention is set to dense.

    Raises:
        ValueError: it reads no text.
        dynattn.lab.tasks.DataMissingError: the articles are not on this machine.
    """
    if pretrained.kind not in ("encoder", "decoder"):
        raise ValueError(
            f"calibration: the model must read text: {pretrained.name} is {pretrained.kind}; calibrate() it on inputs "
            "of its own in Python"
        )
    model = pretrained.model
    if model not in _known:
        model.set_attn_implementation(BASELINE)
        _known[model] = calibrate(model, short_articles(pretrained, TEXTS))
    return _known[model]


def short_articles(pretrained: Pretrained, texts: int) -> list[Inputs]:
    """Inputs of a model, a text each, on its device.

    Args:
        pretrained: an encoder or decoder.
        texts: so many articles, the shortest ones that say anything, since tasks take the longest first.

    Raises:
        dynattn.lab.tasks.DataMissingError: the articles are not on this machine.
    """
    tokens = longest(pretrained, TOKENS)
    beside = {"use_cache": False} if pretrained.kind == "decoder" else {}
    articles = [text for text in wikipedia() if text.body.strip()]
    given = (inputs(pretrained, [text.body[: TOKENS * 20]], tokens) for text in articles[-texts:])
    return [{name: x.to(pretrained.model.device) for name, x in one.items()} | beside for one in given]
