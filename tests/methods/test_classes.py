"""A registry of classes: names are asked in order, and a class that is defined again replaces the one before."""

from __future__ import annotations

import pytest

from dynattn.methods.classes import Classes


class Base:
    word = ""

    @classmethod
    def from_name(cls, name: str) -> Base | None:
        return cls() if name.startswith(cls.word) else None


class First(Base):
    word = "a"


class Second(Base):
    word = "ab"


def test_the_first_class_that_knows_a_name_gives_the_object() -> None:
    known: Classes[Base] = Classes(Base, "here.Base")
    assert known.find("ab") is None
    known.add(Second)
    known.add(First)
    assert type(known.find("abc")) is Second
    assert type(known.find("acb")) is First
    assert known.find("b") is None


def test_a_class_defined_again_takes_the_place_of_the_one_before() -> None:
    def define() -> type[Base]:
        class Again(Base):
            word = "x"

        return Again

    known: Classes[Base] = Classes(Base, "here.Base")
    for cls in (define(), First, newest := define()):
        known.add(cls)
    assert known.known == [First, newest]


@pytest.mark.parametrize("wrong", [int, First(), "First", None])
def test_what_is_no_subclass_is_refused(wrong: object) -> None:
    known: Classes[Base] = Classes(Base, "here.Base")
    with pytest.raises(TypeError, match=r"register: cls must be a subclass of here.Base: got .*; inherit from it"):
        known.add(wrong)  # pyright: ignore[reportArgumentType]
