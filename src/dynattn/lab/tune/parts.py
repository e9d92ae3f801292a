"""The exams of a model: one set for the search and one for each try of the proof, on data that the search has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.scoring import check_known
from dynattn.lab.tasks import default
from dynattn.lab.tasks.base import uniform
from dynattn.lab.tasks.features import Features
from dynattn.lab.tasks.perplexity import Perplexity
from dynattn.lab.tasks.saliency import Saliency
from dynattn.lab.tasks.speech import Speech
from dynattn.lab.tasks.texts import Text, wikipedia
from dynattn.lab.tune import own, pieces
from dynattn.lab.tune.exams import Exam, of_payload, prepared
from dynattn.lab.tune.keys import Keys
from dynattn.lab.tune.plan import LEAST, MOST, Counts
from dynattn.lab.tune.queries import Queries
from dynattn.lab.tune.spoken import Spoken

TRIES = 2
"""How many tries the proof has."""

_BLOCK = 128  # tokens of which a score is the mean; the item is the text
_BLOCKS = 16  # the fewest blocks of a text
_PASSAGES = 10  # for each item that the plan counts: many ranks are needed, and an encoder's forwards are short
_QUERIES_A_PASSAGE = 6
_QUERY_OF_A_PASSAGE = 1 / 12  # the tokens of a query over those of its passage, about
_PICTURES = 3  # for each item that the plan counts
_OF_A_RECORDING = 0.5  # the plan counts more than there are
_RECORDINGS = 64  # more than there are

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
    """One exam takes pieces of text in blocks of tokens; the other hides numbers in these pieces and asks for them.

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
    block = max(1, -(-length // _BLOCKS)) if length < _BLOCKS * _BLOCK else _BLOCK
    task = Perplexity(tokens=length, block=block)

    def exams(its: Sequence[pieces.Piece], hidden: int | None, seed: int) -> Exams:
        labels = [f"{piece.title}, block {i + 1}" for piece in its for i in range(-(-(length - 1) // block))]
        said = f"{len(its)} {drawn.whose} of {length} tokens, read in blocks of {block}"
        text = of_payload(task, labels, [piece.ids for piece in its], length, uniform(pretrained), said)
        check_known(pretrained, [given[number].body for number in sorted({piece.text for piece in its})], "tune")
        hay = tuple(piece.ids for piece in its[:hidden])
        return text, prepared(Keys(hay, seed=seed, whose=drawn.whose), pretrained, second=True, clustered=True)

    search = exams(drawn.pieces[:searched], counts.search_second, 0)
    return Parts(search, (exams(drawn.pieces[searched:], None, 1),) * TRIES)


def _retrieval(pretrained: Pretrained, texts: Sequence[Text] | None, length: int, counts: Counts) -> Parts:
    """Passages of texts that no other part has. Where there are fewer texts than parts, each is cut into thirds."""
    given = pieces.shuffled(wikipedia() if texts is None else texts)
    many = TRIES + 1
    if len(given) < many:
        given = [
            Text(
                f"{text.title}, part {i + 1}", text.body[i * len(text.body) // many : (i + 1) * len(text.body) // many]
            )
            for i in range(many)
            for text in given
        ]

    def exams(part: int) -> Exams:
        task = Queries(_PASSAGES * _items(counts, part), length, tuple(given[part::many]), seed=part)
        return (prepared(task, pretrained),)

    return _each(exams)


def _speech(pretrained: Pretrained) -> Parts:
    every, many = Speech(items=_RECORDINGS).prepare(pretrained), TRIES + 1
    if every.steps < many:
        raise ValueError(f"tune: there must be at least {many} recordings: got {every.steps}")
    exams = [Exam(task, task.of(every)) for task in (Spoken(part, many) for part in range(many))]
    return _each(lambda part: (exams[part],))
