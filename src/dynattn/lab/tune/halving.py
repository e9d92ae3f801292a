"""The strongest setting of each of several families that keeps the limits, by halving what is left of all together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def strongest(
    families: Sequence[Sequence[str]], keeps: Callable[[Sequence[str]], Mapping[str, bool]], in_time: Callable[[], bool]
) -> list[str | None]:
    """Seven settings of a family take three measurements.

    Args:
        families: the settings of each, the mildest first.
        keeps: measures a setting of each family that is not settled yet, all together, and tells which keep the limits.
        in_time: whether there is time for that once more.

    Returns:
        A setting for each family; None where none was found.
    """
    # settings below low keep the limits, those from high on do not
    low, high = [0] * len(families), [len(names) for names in families]
    while open_ := [i for i in range(len(families)) if low[i] < high[i]]:
        if not in_time():
            break
        middle = {i: (low[i] + high[i]) // 2 for i in open_}
        held = keeps([families[i][at] for i, at in middle.items()])
        for i, at in middle.items():
            if held[families[i][at]]:
                low[i] = at + 1
            else:
                high[i] = at
    return [names[at - 1] if at else None for names, at in zip(families, low, strict=True)]
