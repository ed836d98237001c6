"""Check of the graph in an export archive (its `model.json`). Needs only the standard library.

Everything that `torch.export.load` would resolve, evaluate or import is met here first. What PyTorch does not need (stack
traces, guards, which it would compile) is removed from the program in place.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from fleetfit.compress.intake.symbols import is_safe_expression
from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.aten_operators import is_allowed_operator, is_allowed_text

_MAX_NODES = 100_000
_MAX_DEPTH = 64
# Names become Python source when PyTorch compiles a graph, so only what cannot be anything but a name is let through:
# identifiers for values, and for weights what may stand between two quotes (a ModuleDict's keys are free text).
_IDENTIFIERS = frozenset({"name", "as_name"})
_IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,299}$")
_PLAIN = re.compile(r"^[A-Za-z0-9_./: +-]{0,300}$")
# Text that is checked in ways of its own.
_CHECKED_APART = frozenset({"target", "expr_str", "as_string", "as_strings", "in_spec", "out_spec"})
_SPEC_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
_ASSERTIONS = ("torch.ops.aten._assert", "torch.ops.aten._functional_assert")
# Arguments that carry code or objects rather than values.
_FORBIDDEN_KEYS = {
    "as_graph": "a nested graph, from control flow or from a torch.no_grad() or autocast block inside forward",
    "as_custom_obj": "a script object",
    "as_operator": "an operator passed as a value",
    "as_string_to_argument": "arguments by name",
    "custom_obj": "a script object",
    "token": "a side effect",
    "gradient_to_parameter": "its own training step",
    "loss_output": "its own training step",
    "gradient_to_user_input": "its own training step",
}


def _refuse(problem: str) -> NoReturn:
    raise InvalidModel(
        f"The model file {problem}; `fleetfit models check package.module:factory` names the line of the model that it comes "
        "from, and fleetfit.export makes the file again."
    )


def check_program(program: dict[str, Any]) -> None:
    """Check a program and strip it of what is not needed.

    Raises:
        InvalidModel: An operator, expression, object or structure has no place in a plain model.
    """
    module = program.get("graph_module")
    graph = module.get("graph") if isinstance(module, dict) else None
    if not isinstance(module, dict) or not isinstance(graph, dict) or not isinstance(graph.get("nodes"), list):
        _refuse("has a graph that cannot be read")
    if len(graph["nodes"]) > _MAX_NODES:
        _refuse(f"has {len(graph['nodes'])} operations where {_MAX_NODES} are allowed")
    if graph.get("custom_obj_values"):
        _refuse("holds script objects, which could run code")
    for node in graph["nodes"]:
        _check_node(node)
    _check_calls(module)
    module["metadata"] = {}
    module["treespec_namedtuple_fields"] = {}
    program["guards_code"] = []
    constraints = program.get("range_constraints", {})
    if not isinstance(constraints, dict) or not all(is_safe_expression(key) for key in constraints):
        _refuse("has limits on its sizes that cannot be read")
    _walk(program, 0)


def _check_node(node: Any) -> None:
    if not isinstance(node, dict) or not isinstance(node.get("target"), str):
        _refuse("has an operation that cannot be read")
    target = node["target"]
    if not is_allowed_operator(target):
        if "higher_order" in target:
            _refuse(
                f"uses {target[:80]!r}, which stands for control flow or for a torch.no_grad() or autocast block inside "
                "forward; move that out of the model"
            )
        _refuse(f"calls {target[:80]!r}, which is not one of PyTorch's own operators on tensors")
    if not isinstance(node.get("inputs"), list):
        _refuse("has an operation that cannot be read")
    for named in node["inputs"]:
        argument = named.get("arg") if isinstance(named, dict) else None
        if not isinstance(argument, dict):
            _refuse(f"gives {target!r} an argument that cannot be read")
        if target.startswith(_ASSERTIONS) and "as_string" in argument:
            # The message of an assertion, which is dropped with it.
            argument["as_string"] = "check"
        texts = [argument["as_string"]] if "as_string" in argument else argument.get("as_strings", [])
        if not isinstance(texts, list) or not all(isinstance(text, str) and is_allowed_text(text) for text in texts):
            _refuse(f"gives {target!r} a text argument that is no keyword of it")
    # Stack traces name the user's files, and PyTorch resolves names found in the rest; nothing here needs either.
    node["metadata"] = {}


def _check_calls(module: dict[str, Any]) -> None:
    calls = module.get("module_call_graph")
    if not isinstance(calls, list):
        _refuse("does not say how it is called")
    kept = []
    for call in calls:
        if not isinstance(call, dict):
            _refuse("does not say how it is called")
        if call.get("fqn") != "":
            continue
        signature = call.get("signature")
        if not isinstance(signature, dict):
            _refuse("does not say how it is called")
        for key in ("in_spec", "out_spec"):
            try:
                protocol, spec = json.loads(signature[key])
            except (KeyError, TypeError, ValueError, RecursionError):
                _refuse("does not say how it is called")
            if protocol != 1:
                _refuse("does not say how it is called in a way known here")
            _check_spec(spec, 0, _IDENTIFIER if key == "in_spec" else _PLAIN)
        names = signature.get("forward_arg_names")
        if names is not None and not (isinstance(names, list) and all(_is_text(name, _IDENTIFIER) for name in names)):
            _refuse("has inputs whose names are not identifiers")
        kept.append(call)
    if len(kept) != 1:
        _refuse("does not say how it is called")
    module["module_call_graph"] = kept


def _is_text(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and bool(pattern.fullmatch(value))


def _check_spec(spec: Any, depth: int, keys: re.Pattern[str]) -> None:
    if not isinstance(spec, dict) or depth > _MAX_DEPTH or not isinstance(spec.get("children_spec"), list):
        _refuse("has inputs or outputs in a structure that cannot be read")
    kind = spec.get("type")
    if kind is not None and not isinstance(kind, str) or kind not in _SPEC_TYPES:
        _refuse(
            f"takes or returns a {str(kind)[:60]!r}; let forward take tensors and return a tensor, a tuple, a list or a dict"
        )
    context = spec.get("context")
    if kind is not None:
        # The context is JSON inside JSON; PyTorch imports a module for what it calls an enum in there.
        try:
            names = json.loads(context) if isinstance(context, str) else context
        except (ValueError, RecursionError):
            _refuse("has inputs or outputs in a structure that cannot be read")
        if names is not None and not (isinstance(names, list) and all(_is_text(name, keys) for name in names)):
            _refuse("takes or returns a dict whose keys are not plain names")
    elif context is not None or spec["children_spec"]:
        _refuse("has inputs or outputs in a structure that cannot be read")
    for child in spec["children_spec"]:
        _check_spec(child, depth + 1, keys)


def _walk(value: Any, depth: int) -> None:
    """Meet every dict of the program: no code, no objects, no expression outside the grammar, no other device."""
    if depth > _MAX_DEPTH:
        _refuse("is nested deeper than any exported model")
    if isinstance(value, list):
        for part in value:
            if isinstance(part, str) and not _is_text(part, _PLAIN):
                _refuse(f"holds the text {part[:60]!r}, which has no place there")
            _walk(part, depth + 1)
        return
    if not isinstance(value, dict):
        return
    for key, part in value.items():
        if not _is_text(key, _PLAIN) and not is_safe_expression(key):
            _refuse(f"holds the name {key[:60]!r}, which is not a plain name")
        if key in _CHECKED_APART and isinstance(part, (str, list)):
            if key == "expr_str" and not (isinstance(part, str) and is_safe_expression(part)):
                _refuse(f"has the size {str(part)[:60]!r}, which is not a plain expression")
            continue
        if isinstance(part, str) and not _is_text(part, _IDENTIFIER if key in _IDENTIFIERS else _PLAIN):
            _refuse(f"holds the name {part[:60]!r}, which is not a plain name")
        if key in _FORBIDDEN_KEYS:
            _refuse(f"holds {_FORBIDDEN_KEYS[key]}, which cannot be taken apart safely")
        if key == "expr_str":
            _refuse("has a size that is not a plain expression")
        if key in ("as_device", "device") and isinstance(part, dict) and part.get("type") not in ("cpu", "meta"):
            _refuse("was exported on another device than the CPU; move model and samples with .cpu() first")
        _walk(part, depth + 1)
