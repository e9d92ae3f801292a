"""What linear layers leave out, in words and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from dynattn.lab.terminal import Grid

_TITLE = "What linear layers leave out"


def sentence(methods: Mapping[str, str]) -> str:
    """How many linear layers have which method.

    Args:
        methods: by site.
    """
    counts = Counter(methods.values())
    return ", ".join(f"{name} in {count} linear layer{'s' * (count > 1)}" for name, count in counts.most_common())


def grid(methods: Mapping[str, str]) -> Grid:
    """A row for each method: in how many layers it has which projection.

    Args:
        methods: by site.
    """
    rows = []
    for name, count in Counter(methods.values()).most_common():
        of = Counter(site.partition(".")[2] for site, its in methods.items() if its == name)
        rows.append([name, str(count), ", ".join(f"{projection} {many}" for projection, many in of.items())])
    return Grid(_TITLE, ["method", "linear layers", "of them"], rows)
