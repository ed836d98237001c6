"""Recipes: ordered lists of passes, as YAML. Imports neither torch nor numpy, so that a server may read them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from fleetfit.compress.composition import advice, check_order
from fleetfit.compress.passes.base import MOST_EPOCHS, Needs, Pass
from fleetfit.compress.registry import passes
from fleetfit.core.errors import InvalidRecipe, NotFound

ORIGINAL: Final = "original"
CONTROL: Final = "original-retrained"
REPEAT: Final = "repeat"
MOST_STEPS: Final = 32
LONGEST_NAME: Final = 64
NAME_PATTERN: Final = f"^[A-Za-z0-9_-][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}$"
_LONGEST_TEXT = 64 * 1024
# Parameters of `distill` that say how long it trains.
_BUDGETS: Final = frozenset({"epochs", "steps", "seconds", "least_epochs"})


class _Loader(yaml.SafeLoader):
    """Plain YAML: no aliases (a few bytes of them stand for gigabytes), and no key twice (one would be lost silently)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "has an alias", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"has {_short(key)} twice", node.start_mark)
        return super().construct_mapping(node, deep)


class Recipe(BaseModel):
    """A name and the passes in their order. No steps: the model as it is, built for a runtime."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)
    name: str
    steps: tuple[Pass, ...] = ()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError("a recipe's name has 1 to 64 letters, digits, '-', '_' or '.', and no '.' in front")
        return name

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "the recipe") -> Recipe:
        """Read a recipe. Raises InvalidRecipe with one sentence: what is wrong, where, and what would be right."""
        if len(text) > _LONGEST_TEXT:
            raise InvalidRecipe(
                f"{source} is longer than {_LONGEST_TEXT} characters, which no recipe is", field="recipe"
            )
        try:
            content = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        except yaml.constructor.ConstructorError as error:
            where = f" in line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
            raise InvalidRecipe(f"{source} {error.problem}{where}; write every key once, and plainly") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            # ValueError: a date or a number that there cannot be.
            mark = getattr(error, "problem_mark", None)
            where = f" in line {mark.line + 1}" if mark is not None else ""
            raise InvalidRecipe(
                f"{source} is not YAML{where}; a recipe reads like {{name: mine, steps: [quantize: {{mode: static}}]}}"
            ) from error
        if not isinstance(content, dict):
            raise InvalidRecipe(f"{source} is not a recipe: it needs the keys 'name' and 'steps'", field="recipe")
        unknown = set(map(str, content)) - {"name", "steps"}
        if unknown:
            raise InvalidRecipe(f"{source} has the unknown key {_short(min(unknown))}; a recipe has 'name' and 'steps'")
        steps = tuple(_steps(content.get("steps"), source))
        check_order(steps, source)
        name = content.get("name")
        if not isinstance(name, str):
            raise InvalidRecipe(f"{source} needs a 'name' of letters, digits and '-'", field="name")
        try:
            return cls(name=name, steps=steps)
        except ValidationError as error:
            raise InvalidRecipe(f"{source}: {_sentence(error)}", field="name") from error

    @classmethod
    def from_user(cls, text: str, *, source: str = "the recipe") -> Recipe:
        """`from_yaml` for what a person wrote: the names that fleetfit gives to its own baselines are refused too."""
        recipe = cls.from_yaml(text, source=source)
        if recipe.name in (ORIGINAL, CONTROL):
            raise InvalidRecipe(
                f"{source} is named '{recipe.name}', which means the baseline in reports; choose another name",
                field="name",
            )
        return recipe

    @classmethod
    def original(cls) -> Recipe:
        """The model as it is."""
        return cls(name=ORIGINAL)

    @classmethod
    def control(cls, training: Mapping[str, Any]) -> Recipe:
        """The original with the same extra training that compressed variants get (a `distill` step's parameters)."""
        return cls(name=CONTROL, steps=(passes()["distill"].model_validate(dict(training)),))

    def fitted(self, round_to: int) -> Recipe:
        """The recipe for a device that likes widths in multiples of `round_to`: written into the steps that give none.

        What is made, stored and named by a key is the fitted recipe: devices of one vector width share a variant, and to a
        recipe that is fitted already, or that changes no width, nothing happens.
        """
        return self.model_copy(update={"steps": tuple(step.fitted(round_to) for step in self.steps)})

    def for_builds(self) -> Recipe:
        """Only the steps that work on a built file: what is left to do to a network that was trained after the others."""
        return self.model_copy(update={"steps": tuple(step for step in self.steps if step.must_be_last)})

    def to_yaml(self) -> str:
        """The canonical text: the same recipe always gives the same."""
        steps = [{step.pass_name(): step.parameters()} for step in self.steps]
        return yaml.safe_dump({"name": self.name, "steps": steps}, sort_keys=True)

    def key_material(self) -> list[dict[str, Any]]:
        """What makes variants differ: the passes, their versions and parameters, not the recipe's name."""
        return [
            {"pass": step.pass_name(), "version": step.version, "parameters": step.parameters()} for step in self.steps
        ]

    def training_effort(self, count: int) -> float:
        """On how many samples all steps train together, where the training split has `count`."""
        return sum(step.training_effort(count) for step in self.steps)

    def trains(self) -> bool:
        """Whether any pass trains, and so computes where `--compute` says."""
        return any(Needs.TRAINING in step.wants() for step in self.steps)

    def training_seconds(self) -> float:
        """The budget of all steps that train for some seconds, how many samples that will be not being known beforehand."""
        return sum(step.training_seconds() for step in self.steps)

    def training(self, count: int) -> dict[str, Any] | None:
        """Parameters of one `distill` step that trains as much as all training steps together, or None where nothing trains.

        They are those of the heaviest step on a training split of `count` samples, with as many epochs as all samples of all
        steps make: the control is to get no less than a variant got. What is given in seconds it gets in seconds (on a larger
        model these are fewer steps; the lineage says how many), and at least the epochs of the steps that have epochs.
        """
        trained = [step for step in self.steps if Needs.TRAINING in step.wants()]
        if not trained:
            return None
        heaviest = max(trained, key=lambda step: (step.training_effort(count), step.training_seconds()))
        same = isinstance(heaviest, passes()["distill"])
        parameters = {name: value for name, value in heaviest.parameters().items() if same and name not in _BUDGETS}
        used = min(count, parameters.get("samples", count))
        effort, seconds = self.training_effort(count), self.training_seconds()
        # No step may have more; whoever trains so long is told by the report what the control got.
        epochs = min(effort / used, MOST_EPOCHS) if used > 0 else heaviest.parameters().get("epochs", 0)
        if seconds > 0:
            parameters["seconds"] = seconds
        if epochs > 0:
            parameters["least_epochs" if seconds > 0 else "epochs"] = epochs
        return parameters

    def advice(self) -> dict[int, list[str]]:
        """What its author should know about the order of the steps, by the index of the step."""
        return advice(self.steps)

    def needs_data(self) -> bool:
        """Whether any pass reads the training split."""
        return any({Needs.DATA, Needs.TRAINING} & step.wants() for step in self.steps)

    def needs_trainable(self) -> bool:
        """Whether any pass changes layers, which an uploaded ONNX file does not have."""
        return any(Needs.LAYERS in step.wants() for step in self.steps)


def _steps(raw: object, source: str) -> list[Pass]:
    """The passes in a list, with what is to be repeated written out."""
    wrong = InvalidRecipe(f"{source} needs 'steps', a list of 1 to {MOST_STEPS} passes", field="steps")
    if not isinstance(raw, list) or not raw or len(raw) > MOST_STEPS:
        raise wrong
    found: list[Pass] = []
    for number, item in enumerate(raw, 1):
        if isinstance(item, dict) and list(item) == [REPEAT]:
            found += _repeated(item[REPEAT], number, source)
        else:
            found.append(_step(item, number, source))
        if len(found) > MOST_STEPS:
            raise wrong
    return found


def _repeated(item: object, number: int, source: str) -> list[Pass]:
    times = item.get("times") if isinstance(item, dict) else None
    if not isinstance(item, dict) or set(item) != {"times", "steps"} or type(times) is not int or times < 1:
        raise InvalidRecipe(
            f"step {number} of {source} must read '- repeat: {{times: 3, steps: [...]}}'", field="steps"
        )
    return min(times, MOST_STEPS + 1) * _steps(item["steps"], f"step {number} of {source}")


def control_for(recipes: Iterable[Recipe], count: int) -> Recipe | None:
    """The control for several recipes on a training split of `count` samples; None where none of them trains.

    It gets the epochs of the recipe that trains on most samples, and the seconds of the one with most seconds.
    """
    trained = [recipe for recipe in recipes if recipe.training(count) is not None]
    if not trained:
        return None
    heaviest = max(trained, key=lambda recipe: (recipe.training_effort(count), recipe.training_seconds()))
    training = heaviest.training(count) or {}
    seconds = max(recipe.training_seconds() for recipe in trained)
    if seconds > 0:
        training["seconds"] = seconds
        if "epochs" in training:
            training["least_epochs"] = training.pop("epochs")
    return Recipe.control(training)


def _step(item: object, number: int, source: str) -> Pass:
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, dict) or len(item) != 1:
        raise InvalidRecipe(f"step {number} of {source} must read '- PASS: {{PARAMETERS}}'", field="steps")
    name, parameters = next(iter(item.items()))
    known = passes()
    kind = known.get(str(name))
    if kind is None:
        near = difflib.get_close_matches(str(name), known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(known))}"
        raise InvalidRecipe(
            f"step {number} of {source} names the unknown pass {_short(str(name))}; {hint}", field="steps"
        )
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRecipe(f"the parameters of step {number} ({name}) of {source} must be a mapping", field="steps")
    if parameters and not all(isinstance(key, str) for key in parameters):
        raise InvalidRecipe(
            f"step {number} of {source}: the parameters of {name} have names, not numbers", field="steps"
        )
    try:
        return kind.model_validate(parameters or {})
    except ValidationError as error:
        # A key that there is not comes first: the right key is often missing because of it.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            fields = _fields_around(kind, first["loc"])
            near = difflib.get_close_matches(str(first["loc"][-1]), fields, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(fields)}"
            raise InvalidRecipe(f"step {number} of {source}: {name} has no parameter {_short(key)}; {hint}") from error
        raise InvalidRecipe(f"step {number} of {source}: {name}: {_sentence(error)}", field="steps") from error


def _fields_around(kind: type[BaseModel], where: Sequence[int | str]) -> list[str]:
    """The parameters that there are at the place where an unknown one was given."""
    if len(where) == 1:
        return list(kind.model_fields)
    inside = [kind.model_fields[str(where[0])].annotation]
    for part in inside:
        if isinstance(part, type) and issubclass(part, BaseModel):
            return list(part.model_fields)
        inside += get_args(part)
    return [str(where[0])]


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("value_error", "missing") else f", not {_short(first['input'])}"
    return f"{_short(key)}: {message}{given}" if key else message


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@cache
def default_recipes() -> dict[str, Recipe]:
    """The named recipes that come with fleetfit: the default set, by name."""
    folder = files("fleetfit.compress") / "recipes"
    found = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            recipe = Recipe.from_yaml(file.read_text(encoding="utf-8"), source=file.name)
            found[recipe.name] = recipe
    return found


def named_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises NotFound, naming those there are."""
    if name == ORIGINAL:
        return Recipe.original()
    known = default_recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
        raise NotFound(f"there is no recipe '{name}', and no file of that name; {hint}", field="recipe")
    return known[name]
