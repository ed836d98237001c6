"""The strict grammar for the symbolic sizes in an export archive.

`torch.export.load` gives these strings to `sympy.sympify`, which is `eval`. Only what PyTorch itself writes is let through:
symbols, integers, and a fixed set of functions over them. Needs only the standard library.
"""

from __future__ import annotations

import ast
import re

_SYMBOL = re.compile(r"^[suz][a-z]{0,8}_?\d{0,6}$")
_FUNCTIONS = frozenset(
    """Add Mul Mod Max Min Pow FloorDiv CleanDiv PythonMod ModularIndexing CeilDiv CeilToInt FloorToInt RoundToInt
    TruncToInt IntTrueDiv FloatTrueDiv ToFloat IsNonOverlappingAndDenseIndicator Eq Ne Le Lt Ge Gt Equality Unequality
    LessThan StrictLessThan GreaterThan StrictGreaterThan And Or Not Abs floor ceiling PowByNatural Piecewise Where
    Identity""".split()
)
_NAMES = frozenset({"true", "false", "True", "False", "oo", "int_oo"})
_ASSUMPTIONS = frozenset({"positive", "integer", "nonnegative", "negative", "zero", "real"})
_MAX_LENGTH = 4000
_MAX_DEPTH = 40
_MAX_INTEGER = 1 << 63
_MAX_POWERS = 2
_MAX_EXPONENT = 8


def is_safe_expression(text: str) -> bool:
    """Whether `text` is an expression that PyTorch writes for a size, and nothing more."""
    if len(text) > _MAX_LENGTH or not text.isascii() or "__" in text:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    powers = sum(
        (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith("Pow"))
        for node in ast.walk(tree)
    )
    return powers <= _MAX_POWERS and _safe(tree.body, 0)


def _is_number(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    if not isinstance(node, ast.Constant) or isinstance(node.value, complex):
        return False
    return isinstance(node.value, (bool, int, float)) and abs(node.value) <= _MAX_INTEGER


def _small_exponent(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Integer" and node.args:
        node = node.args[0]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value <= _MAX_EXPONENT


def _safe(node: ast.AST, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        return False
    below = depth + 1
    if _is_number(node):
        return True
    if isinstance(node, ast.Name):
        return node.id in _NAMES or bool(_SYMBOL.match(node.id))
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow):
            return _safe(node.left, below) and _small_exponent(node.right)
        return isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)) and (
            _safe(node.left, below) and _safe(node.right, below)
        )
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, (ast.USub, ast.UAdd)) and _safe(node.operand, below)
    if isinstance(node, ast.Compare):
        return all(
            isinstance(operator, (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)) for operator in node.ops
        ) and all(_safe(part, below) for part in (node.left, *node.comparators))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _safe_call(node, node.func.id, below)
    return False


def _safe_call(node: ast.Call, function: str, depth: int) -> bool:
    if function == "Symbol":
        return (
            len(node.args) == 1
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
            and bool(_SYMBOL.match(node.args[0].value))
            and all(
                keyword.arg in _ASSUMPTIONS
                and isinstance(keyword.value, ast.Constant)
                and isinstance(keyword.value.value, bool)
                for keyword in node.keywords
            )
        )
    if node.keywords:
        return False
    if function in ("Integer", "Rational"):
        return 1 <= len(node.args) <= 2 and all(_is_number(argument) for argument in node.args)
    if function.startswith("Pow") and (len(node.args) != 2 or not _small_exponent(node.args[1])):
        return False
    return function in _FUNCTIONS and all(_safe(argument, depth) for argument in node.args)
