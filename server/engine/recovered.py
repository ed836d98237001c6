"""Networks that users trained, as candidates of a job: found by name, planned, and put into a child's task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.recipe import LONGEST_NAME, Recipe
from fleetfit.compress.tasks import CompressFacts, Recovered, RecoveredFacts, Step
from fleetfit.core.digests import short
from fleetfit.core.errors import InvalidInput
from fleetfit.server.engine.library import check_state
from fleetfit.server.engine.lookup import find_by_key
from fleetfit.server.engine.planning import PlannedModel, PlannedRecovered
from fleetfit.server.storage.tables import ModelRow, RecoveredRow, VariantRow

_SUFFIX: Final = "-recovered"
_KEY_SHOWN: Final = 6


def plan_recovered(
    session: Session, names: Sequence[str], model: PlannedModel, recipes: Iterable[Recipe], owner: str
) -> list[PlannedRecovered]:
    """The networks of these names, each once, as candidates for a job of `model`, named apart from each other and `recipes`.

    Raises NotFound, or InvalidInput for what was refused, is still being checked, or is of another model.
    """
    own = select(RecoveredRow).where(RecoveredRow.owner == owner)
    shown_by = "`fleetfit models push --recovers`"
    rows = [
        find_by_key(session, own, RecoveredRow.id, name, "recovered network", shown_by) for name in dict.fromkeys(names)
    ]
    found: dict[str, Recipe] = {}
    for row in rows:
        check_state(row.state, row.refusal, f"the recovered network {short(row.id)}")
        variant = session.get_one(VariantRow, row.variant_key)
        made_from = session.get_one(ModelRow, variant.model_id)
        if made_from.sha256 != model.sha256:
            raise InvalidInput(
                f"the recovered network {short(row.id)} is of {made_from.name}:{made_from.version}, and this job is of "
                f"another model, {model.name}; start one of {made_from.name}:{made_from.version}, or leave it out",
                field="recovered",
            )
        found[row.id] = _recipe_of(variant)
    wished = {key: _named(recipe, _SUFFIX) for key, recipe in found.items()}
    taken = Counter([recipe.name for recipe in (*recipes, *wished.values())])
    return [
        PlannedRecovered(
            key, wished[key] if taken[wished[key].name] == 1 else _named(recipe, f"{_SUFFIX}-{key[:_KEY_SHOWN]}")
        )
        for key, recipe in found.items()
    ]


def work_of_recovered(session: Session, variant: VariantRow, metric: str) -> tuple[Recovered, str]:
    """What a task is told of the network that `variant` is made of, and the network's digest."""
    row = session.get_one(RecoveredRow, variant.recovered)
    parent = session.get_one(VariantRow, row.variant_key)
    lineage = CompressFacts.model_validate(parent.facts).lineage
    steps = lineage[1 : len(lineage) - len(_recipe_of(parent).for_builds().steps)]
    same_data = parent.dataset_id == variant.dataset_id
    earlier = [
        step if same_data and _judged_by(step, metric) else step.model_copy(update={"metric": None}) for step in steps
    ]
    network = RecoveredFacts.model_validate(row.facts).network
    return Recovered(variant=parent.key, file=row.sha256, lineage=earlier), network.sha256


def _judged_by(step: Step, metric: str) -> bool:
    return step.metric is None or step.metric.name == metric


def _recipe_of(variant: VariantRow) -> Recipe:
    return Recipe.from_yaml(variant.recipe) if variant.recipe else Recipe.original()


def _named(recipe: Recipe, suffix: str) -> Recipe:
    return recipe.model_copy(update={"name": recipe.name[: LONGEST_NAME - len(suffix)] + suffix})
