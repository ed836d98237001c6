"""`fleetfit recipes`: list, show, check, schema. All on this machine; no server is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetfit.client.commands.options import AsJson, application
from fleetfit.client.output import Output
from fleetfit.client.requests import recipe_source

if TYPE_CHECKING:
    from fleetfit.compress.recipe import Recipe

app = application("List, check and explain recipes.")

Given = Annotated[str, typer.Argument(metavar="NAME_OR_FILE", help="A recipe's name or YAML file.", show_default=False)]


@app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """The recipes that `compress` tries unless others are named."""
    from fleetfit.client.tables.plain_table import table
    from fleetfit.compress.recipe import default_recipes

    output = Output(as_json)
    recipes = {name: [step.pass_name() for step in recipe.steps] for name, recipe in default_recipes().items()}
    if as_json:
        output.json({"recipes": [{"name": name, "passes": passes} for name, passes in recipes.items()]})
        return
    output.show(table([("NAME", ""), ("PASSES", "")], [(name, ", ".join(steps)) for name, steps in recipes.items()]))


@app.command()
def show(recipe: Given, as_json: AsJson = False) -> None:
    """A recipe in full, every parameter written out: a file to begin one's own from."""
    output = Output(as_json)
    found = read_recipe(recipe)
    if as_json:
        steps = [{"pass": step.pass_name(), "parameters": step.parameters()} for step in found.steps]
        output.json({"name": found.name, "steps": steps})
        return
    output.say(found.to_yaml().rstrip())


@app.command()
def check(recipe: Given, as_json: AsJson = False) -> None:
    """Whether a recipe can be read, and what is seldom wise about the order of its steps."""
    output = Output(as_json)
    found = read_recipe(recipe)
    remarks = [
        {"step": at + 1, "pass": found.steps[at].pass_name(), "remark": sentence}
        for at, sentences in sorted(found.advice().items())
        for sentence in sentences
    ]
    if as_json:
        output.json({"ok": True, "name": found.name, "steps": len(found.steps), "remarks": remarks})
        return
    output.say(f"{found.name} is a recipe of {len(found.steps)} step{'s' if len(found.steps) != 1 else ''}")
    for one in remarks:
        output.say(f"step {one['step']}, {one['pass']}: {one['remark']}")


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Else standard output.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The JSON schema of recipe files, for editors: completion, and errors while one types."""
    from fleetfit.compress.recipe_schema import recipe_schema

    output = Output(as_json)
    text = json.dumps(recipe_schema(), indent=None if as_json and out is None else 2)
    if out is None:
        typer.echo(text)
        return
    out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        output.json({"file": str(out)})
    output.say(f"{out} is written; name it in a recipe's first line: # yaml-language-server: $schema={out}")


def read_recipe(given: str) -> Recipe:
    """The recipe in a file, or the one of that name. Raises InvalidRecipe or NotFound."""
    from fleetfit.compress.recipe import Recipe, named_recipe

    source = recipe_source(given)
    if source.WhichOneof("source") == "yaml":
        return Recipe.from_user(source.yaml, source=given)
    return named_recipe(given)
