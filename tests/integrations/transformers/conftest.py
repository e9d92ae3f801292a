"""Each file of this folder can run alone, and no test changes the models of another."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import contracts, register


@pytest.fixture(autouse=True, scope="session")
def registered() -> None:
    register()


@pytest.fixture(autouse=True)
def own_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with attention of its own changes the masks of all models with configs of that class, in one process."""
    monkeypatch.setattr(contracts, "_contracts", dict(contracts._contracts))
    monkeypatch.setattr(contracts, "_eager_alone", set(contracts._eager_alone))
