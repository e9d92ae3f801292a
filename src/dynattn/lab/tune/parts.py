"""The exams of a model: one set for the search and one for each try of the proof, on data that the search has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.scoring import check_known
from dynattn.lab.tasks import default
from dynattn.lab.tasks.features import Features
from dynattn.lab.tasks.saliency import Saliency
from dynattn.lab.tasks.speech import Speech
from dynattn.lab.tasks.texts import Text, wikipedia
from dynattn.lab.tune import own, pieces, queries
from dynattn.lab.tune.beside import TextWithKeys
from dynattn.lab.tune.exams import FEWEST, Exam, prepared
from dynattn.lab.tune.keys import Keys
from dynattn.lab.tune.plan import LEAST, MOST, Counts
from dynattn.lab.tune.queries import Queries

TRIES = 2
"""How many tries the proof has."""

_PASSAGES = 10  # for each item that the plan counts: many ranks are needed, and an encoder's forwards are short
_QUERIES_A_PASSAGE = 6
_QUERY_OF_A_PASSAGE = 1 / 12  # the tokens of a query over those of its passage, about
_PICTURES = 3  # for each item that the plan counts
_OF_A_RECORDING = 0.5  # the plan counts more than there are
_RECORDINGS = 64  # more than there are
_SEARCHED = 3  # texts of the proof for each of the search, where all passages are asked for at once
_TEXTS = 1200  # of an encoder, more than there are passages in the largest plan
_EVERY = 2**20  # passages, more than there are

Exams = tuple[Exam, ...]
"""The exam that decides and, where there is one, an exam of another kind."""


@dataclass(frozen=True)
class Parts:
    """The exams of the search, and of each try of the proof."""

    search: Exams
    proofs: tuple[Exams, ...]

    def data(self, number: int) -> int:
        """The first try that has the very exams of a try: what the dense model scores there holds for both.

        Args:
            number: of the try, from 0.
        """
        # By identity: whether exams that hold arrays are equal cannot be told.
        return next(i for i, exams in enumerate(self.proofs) if exams is self.proofs[number])


def parts(
    pretrained: Pretrained, texts: Sequence[Text] | None, length: int | None, counts: Counts, task: str | None
) -> Parts:
    """All exams.

    Args:
        pretrained: the model.
        texts: the user's own texts; None for those that packages carry.
        length: the number of tokens; None for models whose inputs have one size.
        counts: how many items.
        task: the user's own task, as ``module:function``; None for those of this package.

    Raises:
        ValueError: texts are too short or too few.
        DataMissingError: data is not on this machine.
    """
    if task is not None:
        make = own.found(task)
        return _each(lambda part: (own.exam(make, pretrained, part, counts),))
    if pretrained.kind == "decoder":
        return _language(pretrained, texts, _asked(length), counts)
    if pretrained.kind == "encoder":
        return _retrieval(pretrained, texts, _asked(length), counts)
    if pretrained.kind == "vision":
        kind = Saliency if default("vision", pretrained.name) == ("saliency",) else Features
        return _each(lambda part: (prepared(kind(items=_PICTURES * _items(counts, part), seed=part), pretrained),))
    return _speech(pretrained)


def forwards(kind: Kind) -> float:
    """How many forwards of full length an item that the plan counts stands for."""
    queries = _PASSAGES * _QUERIES_A_PASSAGE * _QUERY_OF_A_PASSAGE
    return {"encoder": _PASSAGES + queries, "vision": _PICTURES, "speech": _OF_A_RECORDING}.get(kind, 1)


def _each(make: Callable[[int], Exams]) -> Parts:
    return Parts(make(0), tuple(make(part) for part in range(1, TRIES + 1)))


def _asked(length: int | None) -> int:
    if length is None:
        raise ValueError("tune: a length must be chosen before texts are cut")
    return length


def _items(counts: Counts, part: int) -> int:
    return counts.prove if part else counts.search


def _language(pretrained: Pretrained, texts: Sequence[Text] | None, length: int, counts: Counts) -> Parts:
    """One exam takes pieces of text in which numbers are hidden; the other asks for these, in the same forwards.

    All tries of the proof take the same pieces: which assignments are tried is settled before the first of them. There
    are more of them than the plan counts, since the proof goes on as long as there is time.
    """
    given = pieces.shuffled(wikipedia() if texts is None else texts)
    least = LEAST.search + LEAST.prove
    drawn = pieces.draw(pretrained, given, length, counts.search + max(counts.prove, MOST.prove), least)
    if len(drawn.pieces) < least:
        raise ValueError(
            f"tune: texts must hold at least {least} pieces of {length} tokens, {LEAST.search} to search with and "
            f"{LEAST.prove} for the proof: {len(given)} texts hold {len(drawn.pieces)}; pass more or longer texts, or "
            "a shorter --length"
        )
    searched = min(counts.search, len(drawn.pieces) - LEAST.prove)

    def exams(its: Sequence[pieces.Piece], seed: int) -> Exams:
        check_known(pretrained, [given[number].body for number in sorted({piece.text for piece in its})], "tune")
        keys = Keys(tuple(piece.ids for piece in its), seed=seed, whose=drawn.whose)
        hidden = prepared(keys, pretrained, second=True, clustered=True)
        task = TextWithKeys(keys, tuple(piece.title for piece in its))
        text = Exam(task, task.of(hidden.data, pretrained), clustered=True)
        return text, replace(hidden, beside=True)

    search = exams(drawn.pieces[:searched], 0)
    return Parts(search, (exams(drawn.pieces[searched:], 1),) * TRIES)


def _retrieval(pretrained: Pretrained, texts: Sequence[Text] | None, length: int, counts: Counts) -> Parts:
    """Sentences of texts that the other part has not. The item is the text, since what is of one text hangs together.

    Where there are too few texts for that, their passages are dealt by chance, and are the items. Both tries of the
    proof take the same ones.
    """
    given = pieces.shuffled(wikipedia() if texts is None else texts)[:_TEXTS]
    task = Queries(_EVERY, length, tuple(given))
    every = prepared(task, pretrained).data
    least = FEWEST + max(1, FEWEST // _SEARCHED)
    items, whose = queries.items(every, least)
    searched = max(1, len(items) // (_SEARCHED + 1))
    if len(items) - searched < FEWEST:
        raise ValueError(
            f"tune: texts must hold at least {least} passages of {length} tokens: "
            f"{len(given)} texts hold {len(items)}; pass more or longer texts, or a shorter --length"
        )

    def exams(its: Sequence[Sequence[int]], many: int) -> Exams:
        data, groups = task.of(pretrained, every, its, _PASSAGES * many, whose)
        return (Exam(task, data, groups=groups),)

    proved = exams(items[searched:], counts.prove)
    # As many passages of a text as in the proof: what a text can lose depends on how many sentences its mean is of.
    each = -(-len(proved[0].data.payload[0]) // proved[0].items)
    seen = np.cumsum([min(len(its), each) for its in items[:searched]])
    few = max(LEAST.search, 1 + int(np.searchsorted(seen, _PASSAGES * counts.search)))
    return Parts(exams([its[:each] for its in items[: min(searched, few)]], counts.search), (proved,) * TRIES)


def _speech(pretrained: Pretrained) -> Parts:
    """The item is the recording, since the tokens of one hang together; both tries of the proof take the same ones."""
    task = Speech(items=_RECORDINGS)
    every = task.prepare(pretrained)
    searched = min(LEAST.search, every.steps - 1)
    if searched < 1:
        raise ValueError(f"tune: there must be at least 2 recordings: got {every.steps}")

    def exams(part: slice) -> Exams:
        its, labels = every.payload[part], every.labels[part]
        data = replace(
            every, payload=its, labels=labels, steps=len(its),
            examples=tuple({**inputs, "use_cache": False} for inputs in its[:2]),
            summary=f"{len(its)} recordings, padded to {every.length} tokens each",
        )  # fmt: skip
        return (Exam(task, data),)

    return Parts(exams(slice(searched)), (exams(slice(searched, None)),) * TRIES)
