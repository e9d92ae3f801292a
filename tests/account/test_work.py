"""Costs are added field by field; the sums count each field once."""

from __future__ import annotations

from dataclasses import fields

from dynattn.account.work import Work

ONE = Work(**{field.name: 10.0**place for place, field in enumerate(fields(Work))})


def test_costs_are_added_field_by_field() -> None:
    total = ONE + ONE + Work()
    assert all(getattr(total, field.name) == 2 * getattr(ONE, field.name) for field in fields(Work))


def test_exponentials_and_bytes_are_no_multiply_adds() -> None:
    assert ONE.multiply_adds == ONE.scores + ONE.choosing + ONE.values + ONE.linear == 10111
    assert ONE.bytes == ONE.read + ONE.written
