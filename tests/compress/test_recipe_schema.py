"""The JSON schema accepts what is read and refuses what is not, as far as a schema can tell."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from fleetfit.compress.recipe import Recipe, default_recipes
from fleetfit.compress.recipe_schema import recipe_schema
from fleetfit.compress.registry import passes
from fleetfit.core.errors import InvalidRecipe


@pytest.fixture(scope="module")
def validator() -> Any:
    Draft202012Validator.check_schema(recipe_schema())
    return Draft202012Validator(recipe_schema())


def test_our_recipes_fit_as_written_and_as_read_back(validator: Any) -> None:
    for file in (files("fleetfit.compress") / "recipes").iterdir():
        if file.name.endswith(".yaml"):
            validator.validate(yaml.safe_load(file.read_text()))
    for recipe in default_recipes().values():
        validator.validate(yaml.safe_load(recipe.to_yaml()))


def test_editors_show_what_a_pass_and_its_parameters_are_for() -> None:
    definitions = recipe_schema()["$defs"]
    assert all(definitions[name]["description"] for name in passes())
    assert definitions["activation_pruning"]["properties"]["round_to"]["description"].startswith("Widths that remain")


@pytest.mark.parametrize(
    "text",
    [
        "{name: a, steps: [{quantize: {}}]}",
        "{name: a, steps: [quantize]}",
        "{name: a, steps: [{quantize: }]}",
        "{name: a, steps: [{repeat: {times: 3, steps: [{activation_pruning: {ratio: 0.2}}, distill]}}]}",
        "{name: a, steps: [{activation_pruning: {ratio: 0.2, skip: [head], overrides: {'s*': {ratio: 0.1}}}}]}",
    ],
)
def test_what_is_read_fits(text: str, validator: Any) -> None:
    Recipe.from_yaml(text)
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "{name: a}",
        "{name: a, steps: []}",
        "{name: .a, steps: [quantize]}",
        "{name: a, steps: [quantise]}",
        "{name: a, steps: [{quantize: {mod: static}}]}",
        "{name: a, steps: [{quantize: {mode: statik}}]}",
        "{name: a, steps: [{quantize: {}, distill: {}}]}",
        "{name: a, steps: [{activation_pruning: {ratio: 2}}]}",
        "{name: a, steps: [{repeat: {times: 0, steps: [distill]}}]}",
        "{name: a, steps: [quantize], more: 1}",
    ],
)
def test_what_is_not_read_does_not_fit(text: str, validator: Any) -> None:
    with pytest.raises(InvalidRecipe):
        Recipe.from_yaml(text)
    assert not validator.is_valid(yaml.safe_load(text))
