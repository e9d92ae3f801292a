"""Wrong settings are refused with the reason."""

from __future__ import annotations

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("transformers")

from dynattn.lab.prune.settings import Settings


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"tolerance": -0.1}, "tolerance must be"), ({"tolerance": 1.0}, "tolerance must be"),
        ({"order": "random"}, "order must be one of"), ({"first": "heads"}, "first must be one of"),
        ({"items": 0}, "items must be at least 1"), ({"tokens": 0}, "tokens must be at least 1"),
        ({"task": "chess"}, "task must be one of"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        Settings(**wrong)
