"""The JSON schema of a recipe file, so that editors complete and check it. Imports neither torch nor numpy."""

from __future__ import annotations

import inspect
from typing import Any

from fleetfit.compress.recipe import MOST_STEPS, NAME_PATTERN, REPEAT
from fleetfit.compress.registry import passes


def recipe_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12) for recipe files, with every installed pass.

    What it accepts is read by `Recipe.from_yaml` unless parameters exclude each other or an order cannot work; those rules
    are given in words only.
    """
    definitions: dict[str, Any] = {}
    steps: list[dict[str, Any]] = []
    bare = []
    for name, kind in sorted(passes().items()):
        parameters = kind.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(parameters.pop("$defs", {}))
        definitions[name] = {**parameters, "title": name, "description": _summary(kind)}
        steps.append(_single(name, {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}))
        bare.append(name)
    repeated = {
        "type": "object",
        "description": "These steps, so many times one after the other.",
        "properties": {
            "times": {"type": "integer", "minimum": 1, "maximum": MOST_STEPS},
            "steps": {"$ref": "#/$defs/steps"},
        },
        "required": ["times", "steps"],
        "additionalProperties": False,
    }
    definitions["steps"] = {
        "type": "array",
        "minItems": 1,
        "maxItems": MOST_STEPS,
        "items": {"anyOf": [*steps, _single(REPEAT, repeated), {"enum": bare}]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A fleetfit recipe",
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": NAME_PATTERN, "description": "How reports call it."},
            "steps": {"$ref": "#/$defs/steps", "description": "The passes in their order."},
        },
        "required": ["name", "steps"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _single(name: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: content}, "required": [name], "additionalProperties": False}


def _summary(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())
