"""Whether a function's code hands what a softmax gives on to a product, which is attention under whatever name.

Routers, samplers and matching losses have a softmax and products too, but what the softmax gives does not reach a
product by the steps that are followed here: assignments, and functions that leave weights what they are, such as
``reshape``. A product of weights and a parameter, such as an embedding's table, is no attention either.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from types import CodeType

SOFTMAX = frozenset({"softmax", "Softmax", "logsumexp", "sparsemax", "_safe_softmax"})
PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum", "mm"})
_STILL_WEIGHTS = frozenset({
    "to", "type_as", "type", "float", "half", "double", "bfloat16", "view", "reshape", "transpose", "permute",
    "swapaxes", "movedim", "contiguous", "clone", "expand", "expand_as", "repeat", "unsqueeze", "squeeze", "flatten",
    "unflatten", "rearrange", "masked_fill", "where", "nan_to_num", "clamp", "checkpoint_name",
})  # fmt: skip
_MODULES = frozenset({"torch", "nn", "functional", "F", "special"})


def _in_order(tree: ast.AST) -> list[ast.Assign | ast.AnnAssign]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Assign, ast.AnnAssign))]
    return sorted(nodes, key=lambda node: node.lineno)


def _trees(codes: Iterable[CodeType]) -> Iterator[ast.AST]:
    for code in codes:
        try:
            yield ast.parse(textwrap.dedent(inspect.getsource(code)))
        except (OSError, TypeError, SyntaxError, ValueError):  # there is no source
            continue


def _softmax_modules(tree: ast.AST) -> Iterator[str]:
    """``normalise`` for ``self.normalise = nn.Softmax(dim=-1)``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _called(node.value) == "Softmax":
            yield from (target.attr for target in node.targets if isinstance(target, ast.Attribute))


def _in_one(tree: ast.AST, softmax: set[str]) -> bool:
    weights: set[str] = set()
    for _ in range(2):  # once more, for what a loop hands back to its start
        for node in _in_order(tree):
            _follow(node, weights, softmax)
    return any(_is_product(node, weights, softmax) for node in ast.walk(tree))


def _follow(node: ast.Assign | ast.AnnAssign, weights: set[str], softmax: set[str]) -> None:
    """Add the names that an assignment makes weights. ``weights *= mask`` leaves them what they were."""
    value = node.value
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        name = _text(target)
        if (
            name is not None
            and value is not None
            and (_are_weights(value, weights, softmax) or _are_scaled(name, value, weights))
        ):
            weights.add(name)


def _are_weights(node: ast.AST, weights: set[str], softmax: set[str]) -> bool:
    if isinstance(node, (ast.Name, ast.Attribute)):
        return _text(node) in weights
    if isinstance(node, (ast.Subscript, ast.NamedExpr, ast.Starred)):
        return _are_weights(node.value, weights, softmax)
    if isinstance(node, ast.IfExp):
        return any(_are_weights(one, weights, softmax) for one in (node.body, node.orelse))
    if not isinstance(node, ast.Call):
        return False
    name = _called(node)
    if name in softmax or (isinstance(node.func, ast.Call) and _called(node.func) in softmax):
        return not _is_parameter(_softened(node))
    if name in _STILL_WEIGHTS or "drop" in name.lower():
        return any(_are_weights(one, weights, softmax) for one in _operands(node)[:2])
    return False


def _are_scaled(name: str, value: ast.AST, weights: set[str]) -> bool:
    """Whether this is ``weights = weights * mask``; other products of weights are outputs."""
    if not isinstance(value, ast.BinOp) or not isinstance(value.op, (ast.Mult, ast.Div)):
        return False
    return name in weights and any(_text(side) == name for side in (value.left, value.right))


def _is_product(node: ast.AST, weights: set[str], softmax: set[str]) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        factors = [node.left, node.right]
    elif isinstance(node, ast.Call) and _called(node) in PRODUCTS:
        factors = _operands(node)
    else:
        return False
    factors = [one for one in factors if not isinstance(one, ast.Constant)]
    by_parameter = len(factors) == 2 and any(map(_is_parameter, factors))
    return not by_parameter and any(_are_weights(one, weights, softmax) for one in factors)


def _softened(call: ast.Call) -> ast.expr:
    """``x`` of ``x.softmax(-1)``, of ``softmax(x, -1)`` and of ``self.normalise(x)``."""
    if call.args and not isinstance(call.args[0], (ast.Constant, ast.UnaryOp)):
        return call.args[0]
    return call.func.value if isinstance(call.func, ast.Attribute) else call.func


def _operands(call: ast.Call) -> list[ast.expr]:
    """What a function or method is applied to: ``x`` and ``y`` of ``x.bmm(y)`` and of ``torch.bmm(x, y)``."""
    whose = call.func.value if isinstance(call.func, ast.Attribute) else None
    if whose is None or (_text(whose) or "").split(".")[0] in _MODULES or _text(whose) == "self":
        return [*call.args]
    return [whose, *call.args]


def _is_parameter(node: ast.AST) -> bool:
    """``self.embedding.weight``, or ``self.bins.unsqueeze(1)``."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    return (_text(node) or "").startswith("self.") and isinstance(node, ast.Attribute)


def _called(call: ast.Call) -> str:
    """The last part of a called function's name."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _text(node: ast.AST) -> str | None:
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else None


@cache
def attends(codes: frozenset[CodeType]) -> bool:
    """Whether weights from a softmax reach a product in the source of one of these; no, where there is no source.

    Args:
        codes: the codes of a class's functions, with its ``__init__``, in which modules get their names.
    """
    trees = list(_trees(codes))
    softmax = {*SOFTMAX, *(name for tree in trees for name in _softmax_modules(tree))}
    return any(_in_one(tree, softmax) for tree in trees)
