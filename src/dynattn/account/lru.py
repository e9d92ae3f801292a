"""A model of the cache in front of the memory, with least-recently-used replacement: which reads go through to DRAM."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np


def misses(reads: Iterable[np.ndarray], capacity: int) -> int:
    """The number of reads that a fully associative cache with least-recently-used replacement does not hold.

    Args:
        reads: arrays of the rows that are read, in order; within one array all rows are distinct.
        capacity: how many rows the cache holds.

    Returns:
        How many reads go to memory. The cache is empty at first.
    """
    reads = list(reads)
    distinct = np.unique(np.concatenate(reads)).size if reads else 0
    if distinct <= capacity:  # nothing is ever replaced
        return int(distinct)
    held: OrderedDict[int, None] = OrderedDict()
    missed = 0
    for rows in reads:
        for row in rows.tolist():
            if row in held:
                held.move_to_end(row)
                continue
            missed += 1
            held[row] = None
            if len(held) > capacity:
                held.popitem(last=False)
    return missed
