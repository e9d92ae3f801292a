"""The costs of dense attention in a forward that pruned tokens, heads, values or bits, from the counts of that forward.

    scores    = (pairs + rows computed again · tokens) · head_dim      (pairs = rows · tokens where nothing is noted)
    values    = values read · head_dim                                (all pairs where the method prunes no values)
    bytes     = rows of Q, K, V and the output, once, at the share of their bits that was read

A layer whose attention is dynattn's is counted call by call instead, by :func:`dynattn.account.counting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynattn.account.work import Work

if TYPE_CHECKING:
    from dynattn.pruning import Forward


def of_forward(forward: Forward, *, head_dim: int, itemsize: int, bits: tuple[int, int] | None = None) -> Work:
    """The costs of the attention of all layers and samples.

    Args:
        forward: as ``trace.last`` of a pruning context holds it.
        head_dim: the head_dim of queries, keys and values.
        itemsize: how many bytes an element has where nothing is quantised.
        bits: the high and low bits of progressive quantisation, as in ``SpAtten(bits=...)``.

    Returns:
        The costs.
    """
    total = Work()
    for layer in forward.layers:
        for sample, (tokens, heads) in enumerate(zip(layer.tokens.tolist(), layer.heads.tolist(), strict=True)):
            notes = {name: int(found[sample]) for name, found in layer.notes.items()}
            rows = tokens * heads
            pairs = notes["pairs"] if "pairs" in notes else rows * tokens  # under a causal mask, about half as many
            values = notes.get("values_read", pairs)
            element, again = float(itemsize), notes.get("rows_again", 0)
            if bits is not None:  # the low bits of all keys are fetched if any row of the layer asks for them
                element = (bits[0] + (bits[1] if again else 0)) / 8
            total += Work(
                scores=(pairs + again * tokens) * head_dim,
                values=values * head_dim,
                exponentials=pairs + again * tokens,
                read=3 * rows * head_dim * element,
                written=rows * head_dim * itemsize,
            )
    return total
