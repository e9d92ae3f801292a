"""The machine is described by what decides speed."""

from __future__ import annotations

import json

from dynattn.lab.machine import describe, machine


def test_machine_names_what_decides_speed():
    here = machine()
    assert here["cores"] >= 1
    assert here["threads"] >= 1
    assert here["processor"]
    assert json.loads(json.dumps(here)) == here
    assert here["processor"] in describe(here)
