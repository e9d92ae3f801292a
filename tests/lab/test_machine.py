"""The machine is described by what decides speed."""

from __future__ import annotations

import json

from dynattn.lab.machine import briefly, describe, machine


def test_machine_names_what_decides_speed():
    here = machine()
    assert here["cores"] >= 1
    assert here["threads"] >= 1
    assert here["processor"]
    assert json.loads(json.dumps(here)) == here
    assert here["processor"] in describe(here)


def test_a_page_names_the_machine_in_a_line():
    here = {"processor": "Zen", "threads": 1, "torch": "2.9", "dynattn": "0.1", "date": "2026-01-02"}
    assert briefly(here) == "Zen, 1 thread, torch 2.9, dynattn 0.1, 2026-01-02"
    assert (
        briefly(here | {"threads": 2}, 3) == "Zen, 2 threads in each of 3 processes, torch 2.9, dynattn 0.1, 2026-01-02"
    )
