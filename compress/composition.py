"""Which passes may follow which, and what a recipe's author should hear about an order that is allowed but seldom wise.

Only what cannot work is refused. Everything else is said: at the step, in the lineage and by `fleetfit recipes check`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleetfit.compress.passes.base import Needs, Pass, Stage
from fleetfit.core.errors import InvalidRecipe


def check_order(steps: Sequence[Pass], source: str) -> None:
    """Raises InvalidRecipe for an order in which a pass could not do its work."""
    for number, step in enumerate(steps[:-1], 1):
        if step.must_be_last:
            raise InvalidRecipe(
                f"step {number} of {source}, {step.pass_name()}, must be the last: later passes cannot change its "
                "result; move it to the end",
                field="steps",
            )


def advice(steps: Sequence[Pass]) -> dict[int, list[str]]:
    """Sentences by the index of the step that they are about; steps that nothing is to be said of are absent."""
    found: dict[int, list[str]] = {}
    for at, step in enumerate(steps):
        earlier, later = steps[:at], steps[at + 1 :]
        if step.stage is Stage.PRUNE and any(other.stage is Stage.FACTORIZE for other in earlier):
            found.setdefault(at, []).append(
                "it comes after a factorization, whose ranks fit the layers as they were; pruning first gives smaller ones"
            )
        if step.stage in (Stage.PRUNE, Stage.FACTORIZE) and not any(_recovers(other) for other in later):
            found.setdefault(at, []).append("no later step recovers what it takes away; distill after it would")
        if step.stage is Stage.RECOVER and at == 0 and len(steps) > 1:
            found.setdefault(at, []).append(
                "nothing was taken away before it; recovery after the passes that do harm gains more"
            )
    return found


def _recovers(step: Pass) -> bool:
    """Whether it gives accuracy back: made for that, or training for another reason."""
    return step.stage is Stage.RECOVER or Needs.TRAINING in step.wants()
