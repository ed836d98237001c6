"""Which operators a graph that came from elsewhere may call. Needs only the standard library."""

from __future__ import annotations

import re

_ATEN = re.compile(r"^torch\.ops\.aten\.([a-z_][a-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)$")
# The only operators of aten whose names begin with two underscores; anything else would be an attribute of Python's.
_DOUBLE_UNDERSCORE = frozenset(f"__{name}__" for name in ("and", "or", "xor", "lshift", "rshift")) | frozenset(
    f"__i{name}__" for name in ("and", "or", "xor", "lshift", "rshift")
)
# These reach files, other processes, other devices or memory that is not a tensor's own.
_FORBIDDEN = re.compile(
    r"(^|_)(file|save|load|fork|wait|await|import|pickle|storage|ptr|cuda|cudnn|pin|rpc|print|warn|device|set|eval|exec)(_|$)"
    r"|^(to_here|data|open|close|read|write|is_shared|share_memory|record_stream|sspaddmm|requires_grad_)$"
)
# Operator names that the pattern above meets by accident.
_ALLOWED_ANYWAY = frozenset({"cudnn_batch_norm", "lift_fresh_copy", "index_put"})
_PYTHON = frozenset(
    """add sub mul floordiv truediv mod neg pos pow eq ne lt le gt ge and_ or_ not_ xor abs index getitem""".split()
)
_TORCH = frozenset(
    "torch." + name for name in "sym_max sym_min sym_not sym_int sym_float sym_ite sym_sum sym_sqrt _sym_sqrt".split()
)
_MATH = frozenset("math." + name for name in "ceil floor trunc sqrt".split())


def is_allowed_operator(target: str) -> bool:
    """Whether `target`, as an archive's JSON names it, is an operator on tensors or sizes and nothing else."""
    if target.startswith("_operator."):
        return target.removeprefix("_operator.") in _PYTHON
    if target in _TORCH or target in _MATH:
        return True
    match = _ATEN.match(target)
    if match is None:
        return False
    name = match.group(1)
    if name.startswith("__"):
        return name in _DOUBLE_UNDERSCORE
    return name in _ALLOWED_ANYWAY or not _FORBIDDEN.search(name)


# Text arguments of operators are keywords (`mean`, `bilinear`, `tanh`) or an einsum equation; never a path.
_TEXT = re.compile(r"^[A-Za-z_ ,>.-]{0,80}$")


def is_allowed_text(text: str) -> bool:
    """Whether a text argument of an operator is a keyword or an equation."""
    return bool(_TEXT.match(text)) and not text.startswith(".")
