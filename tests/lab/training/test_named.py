"""Names of what becomes of the weights stand beside those of attention."""

from __future__ import annotations

import pytest

from dynattn import sparsity
from dynattn.lab.training.mixers import Pooling
from dynattn.lab.training.named import attention_of, known, of_weights
from dynattn.methods import NM, parse
from dynattn.sparsity import NMWeights
from dynattn.sparsity.training import SRSTE


def test_names() -> None:
    assert of_weights("sr-ste-2-4") == SRSTE(2, 4)
    assert of_weights("nmweight-1-8") == NMWeights(1, 8)
    assert of_weights("nm-2-4") is None
    assert [attention_of(name) for name in ("sr-ste-2-4", "nmweight-1-8", "nm-2-4", "sdpa", "ponet-4")] == [
        "sdpa", "sdpa", "nm-2-4", "sdpa", "ponet-4",
    ]  # fmt: skip
    assert known("sr-ste-2-4") == SRSTE(2, 4)
    assert (known("nm-1-2"), known("ponet-4")) == (NM(1, 2), Pooling(4))


def test_wrong_names() -> None:
    with pytest.raises(ValueError, match="got 'ponet-4'"):
        known("ponet-4", parse)
    with pytest.raises(ValueError, match="got 'nothing'"):
        known("nothing")
    assert sparsity.parse("nmact-2-4").name == "nmact-2-4"  # chooses inputs, which no training here goes by
    with pytest.raises(ValueError, match="got 'nmact-2-4'"):
        known("nmact-2-4")
    with pytest.raises(ValueError, match="a mask must need no inputs to be trained with by name: nmweight-2-4-wanda"):
        known("nmweight-2-4-wanda")
