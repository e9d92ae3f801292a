"""Names of methods that are made of others: where one part ends and the next begins.

    a+b   union          a&b   intersection, which binds closer          (a+b)&c   grouping
    perhead(3*a_b)       heads 0 to 2 by a, head 3 by b
    perlayer(a_0-2=b)    layers 0 to 2 by b, the others by a
    blockskip-4.0-in(a)  skips inside of the blocks that a keeps

The name of a method by itself holds none of these signs, and no name holds a comma, so that names can be listed.
"""

from __future__ import annotations

from dynattn.methods.base import Method
from dynattn.methods.registry import parse


def split(name: str, sign: str) -> list[str]:
    """The parts between the signs that stand outside of all brackets."""
    parts, depth = [""], 0
    for letter in name:
        depth += (letter == "(") - (letter == ")")
        if letter == sign and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def inside(name: str, word: str) -> str | None:
    """What stands between the brackets of ``word(…)``, or None where ``name`` is something else."""
    inner = name[len(word) + 1 : -1]
    if name != f"{word}({inner})" or any(len(split(name, sign)) > 1 for sign in "+&"):
        return None
    return inner


def part(name: str) -> Method:
    """The method of a part, in brackets or without.

    Raises:
        ValueError: no method has this name.
    """
    inner = inside(name, "")
    return parse(name if inner is None else inner)


def named(owner: str, method: Method) -> Method:
    """The method that a part's name stands for, since a combination is known by the names of its parts.

    Args:
        owner: the combination, for the error.
        method: the part.

    Raises:
        ValueError: the name stands for no method, or for another one.
    """
    known = parse(method.name)
    if known != method and not (known.keeps_everything and method.keeps_everything):
        raise ValueError(
            f"{owner}: parse(part.name) must be the part: got {known!r} for {method.name!r}, not {method!r}; "
            f"make name and from_name() of {type(method).__name__} hold all of its fields"
        )
    return known
