"""Records come back from JSON, those of before there were dtypes too."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")

from pydantic import ValidationError

from dynattn.lab.compare import Comparison


def test_json_round_trips_and_refuses_unknown_fields(found: Comparison):
    assert Comparison.model_validate_json(found.model_dump_json()) == found
    record = json.loads(found.model_dump_json())
    record["speed"] = 1
    with pytest.raises(ValidationError, match="speed"):
        Comparison.model_validate(record)


def test_records_of_before_there_were_dtypes_are_of_float32(found: Comparison):
    record = json.loads(found.model_dump_json())
    del record["dtype"]
    assert Comparison.model_validate(record) == found
    assert found.dtype == "float32"
