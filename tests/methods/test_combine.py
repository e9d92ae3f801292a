import math

import pytest
import torch

import dynattn
from dynattn import NM, BlockTopK, Fixed, Intersection, PerHead, TopK, Union, Window
from dynattn.methods import PairMethod, Rows
from tests.methods.oracle import Scores, agrees, inputs


def chosen_by(method: PairMethod, s: Scores, offset: int) -> list[set[int]]:
    """The keys that one method keeps of one head."""
    scores = torch.tensor(s, dtype=torch.float64)[None, None]
    kept = method.choose(scores, Rows(scores, scores, offset, 1.0))[0, 0]
    return [{j for j, score in enumerate(row) if score != -math.inf and kept[i, j]} for i, row in enumerate(s)]


PARTS = (NM(1, 2), Window(3, 1), Fixed(0.3))


@pytest.mark.parametrize("parts", [PARTS, PARTS[::-1], (BlockTopK(0.5, 2), BlockTopK(0.4, 3)), (TopK(k=2), PARTS[0])])
def test_union(parts: tuple[PairMethod, ...]) -> None:
    def rule(s: Scores, offset: int) -> list[set[int]]:
        return [set.union(*rows) for rows in zip(*(chosen_by(part, s, offset) for part in parts), strict=True)]

    agrees(Union(parts), rule)


@pytest.mark.parametrize("parts", [PARTS, (TopK(k=3), Window(4)), (BlockTopK(0.5, 2), Window(2, 1), TopK(k=8))])
def test_intersection(parts: tuple[PairMethod, ...]) -> None:
    def rule(s: Scores, offset: int) -> list[set[int]]:
        return [set.intersection(*rows) for rows in zip(*(chosen_by(part, s, offset) for part in parts), strict=True)]

    agrees(Intersection(parts), rule)


def test_a_query_that_is_left_with_nothing_gives_zero() -> None:
    query, key, value = inputs()
    nothing = Intersection((Window(1), Fixed(0.01)))  # itself, and key 0: only query 0 keeps a pair
    out, aux = dynattn.attention(query, key, value, nothing, return_aux=True)
    assert (out[:, :, 1:] == 0).all()
    assert (aux.kept_mass[:, :, 1:] == 0).all()
    assert (aux.logsumexp[:, :, 1:] == -math.inf).all()
    torch.testing.assert_close(out[:, 1, 0], value[:, 0, 0])


def test_blocks_are_cut_where_all_parts_allow_it() -> None:
    both = Union((BlockTopK(0.5, 4), BlockTopK(0.5, 6), NM(1, 2)))
    assert both.rows_together == 12
    assert both.looks_at_positions
    assert not Union((BlockTopK(0.5, 4, window=0), NM(1, 2))).looks_at_positions
    assert Union((both, Window(3))).looks_at_positions


@pytest.mark.parametrize("kind", [Union, Intersection])
def test_keeps_everything(kind: type[Union | Intersection]) -> None:
    assert kind((NM(2, 2), TopK(ratio=1.0))).keeps_everything
    assert kind((NM(2, 2), TopK(ratio=0.5))).keeps_everything == (kind is Union)


@pytest.mark.parametrize("kind", [Union, Intersection])
@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ((NM(1, 2),), ValueError, "parts must be two or more: got 1"),
        ([NM(1, 2), NM(2, 4)], TypeError, "parts must be a tuple of methods that keep pairs"),
        ((NM(1, 2), "nm-2-4"), TypeError, "parts must be a tuple of methods that keep pairs"),
        ((NM(1, 2), PerHead((NM(1, 2),))), TypeError, "parts must be a tuple of methods that keep pairs"),
    ],
)
def test_refusals(kind: type[Union | Intersection], parts: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"{kind.__name__}: {text}"):
        kind(parts)
