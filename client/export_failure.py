"""Why an export failed, in one sentence: the user's own line, and the usual cure. Needs only the standard library."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

# What PyTorch's messages contain, what that means, and the usual cure; the first that fits is taken.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"GuardOnDataDependentSymNode|data-dependent (expression|branching|control)|is_nonzero|"
        r"bool\(\) of a tensor|control flow on (a )?tensor|Could not guard on data-dependent",
        "it decides on a tensor's values",
        "replace the decision by torch.where (or move it out of forward), and replace .item(), int(tensor) and "
        "float(tensor) by tensor operations",
    ),
    (
        r"\.item\(\)|_local_scalar_dense|aten\.item|\.tolist\(\)",
        "it takes a number out of a tensor",
        "keep it a tensor: use tensor operations instead of .item(), .tolist(), int() or float()",
    ),
    (
        r"\.numpy\(\)|numpy|Can't call numpy|FakeTensor.*array|convert.*to.*ndarray",
        "it leaves PyTorch for NumPy",
        "use the torch function of the same name",
    ),
    (
        r"constraints? violated|ConstraintViolation|Not all values of|specialized|You marked .* as dynamic|dynamic_shapes",
        "its batch size cannot vary",
        "use x.shape[0] or -1 in view, reshape and expand instead of a fixed number, or export with dynamic_batch=False",
    ),
    (
        r"dynamic control flow|torch\.cond|higher.order|HigherOrderOperator",
        "it holds control flow",
        "write it without a branch, for example with torch.where",
    ),
    (
        r"BatchNorm|Expected more than 1 value per channel|training mode|running_mean",
        "it runs in training mode",
        "call model.eval() and do not switch layers back to training in forward",
    ),
    (
        r"mutat|in-?place|assigned.*(buffer|attribute)|The tensor attribute",
        "it changes its own tensors while it runs",
        "let forward compute from its inputs only; register state as a buffer and do not assign to it in forward",
    ),
    (
        r"pytree|unsupported (input|output) type|Unsupported.*type|not registered",
        "it takes or returns something that is not a tensor",
        "let forward take tensors and return a tensor, a tuple or a dict of tensors",
    ),
    (
        r"custom (op|autograd)|torch\.ops\.(?!aten)|autograd\.Function|no (fake|meta) impl|does not have a.*meta",
        "it calls an operator that PyTorch does not have itself",
        "write it with PyTorch's own operators",
    ),
    (
        r"device|cuda|mps",
        "its tensors lie on different devices",
        "call model.cpu() and create tensors in forward with device=x.device",
    ),
    (
        r"shape|size|dimension|must match|mat1 and mat2|expand",
        "the shapes do not fit together",
        "check the sample inputs' shapes: the first axis is the batch",
    ),
    (
        r"missing .*argument|unexpected keyword|takes \d+ positional",
        "forward was called with the wrong inputs",
        "give one sample tensor for each parameter of forward",
    ),
)


def explain_failure(failure: BaseException) -> str:
    """One sentence: which line of the user's stops the export, why, and the usual cure."""
    chain = _chain(failure)
    text = "\n".join(f"{type(part).__name__}: {part}" for part in chain)
    line = _user_line(chain)
    where = f"stops at {line}" if line else "fails"
    for pattern, meaning, cure in _CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            return f"The export {where}, where {meaning}; {cure}." if line else f"The export fails: {meaning}; {cure}."
    first = next((part for part in str(failure).splitlines() if part.strip()), type(failure).__name__).strip()
    return (
        f"The export {where} with {type(failure).__name__}: {first[:200].rstrip('.')}; change that line, or export a part of "
        "the model without it."
    )


def explain_operator(operator: str, stack: str, *, nested: bool) -> str:
    """One sentence about an operator that the server does not take, with the line of the user's that calls it.

    Args:
        operator: Its name in the graph.
        stack: The stack trace that the tracer kept for the call.
        nested: Whether it holds a graph of its own (control flow, autocast) rather than being a custom one.
    """
    line = _quoted_line(stack)
    where = f" at {line}" if line else ""
    if nested:
        what = operator.rpartition(".")[2].removeprefix("wrap_with_").replace("_", " ")
        return (
            f"The model uses {what}{where}, which cannot be taken apart; move autocast and gradient switches out of forward, and "
            "write control flow with torch.where."
        )
    return f"The model calls the custom operator {operator}{where}; write it with PyTorch's own operators."


def _chain(failure: BaseException) -> list[BaseException]:
    """The failure and what caused it, outermost first."""
    found: list[BaseException] = []
    current: BaseException | None = failure
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _is_users(file: str) -> bool:
    path = Path(file)
    parts = path.parts
    if file.startswith("<") or "site-packages" in parts or "dist-packages" in parts or "torch" in parts:
        return False
    standard_library = Path(traceback.__file__).resolve().parent
    here = Path(__file__).resolve().parent
    resolved = path.resolve()
    return standard_library not in resolved.parents and resolved.parent != here


def _user_line(chain: list[BaseException]) -> str:
    """`file.py:12 (the code)`: the innermost line that is neither PyTorch's nor ours."""
    for part in reversed(chain):
        for frame in reversed(traceback.extract_tb(part.__traceback__)):
            if _is_users(frame.filename):
                code = f" ({frame.line.strip()[:120]})" if frame.line else ""
                return f"{Path(frame.filename).name}:{frame.lineno}{code}"
    for part in chain:
        line = _quoted_line(str(part))
        if line:
            return line
    return ""


def _quoted_line(text: str) -> str:
    """The same from a stack that the tracer quotes where its own frames have hidden the user's."""
    for file, number, code in reversed(re.findall(r'File "([^"]+)", line (\d+), in .*\n\s*(.+)', text)):
        if _is_users(file):
            return f"{Path(file).name}:{number} ({code.strip()[:120]})"
    return ""
