"""The order of passes: what cannot work is refused, what is seldom wise is said, and repeated steps are written out."""

from __future__ import annotations

import pytest

from fleetfit.compress.recipe import MOST_STEPS, Recipe, default_recipes
from fleetfit.core.errors import InvalidRecipe


def _recipe(steps: str) -> Recipe:
    return Recipe.from_yaml(f"name: a\nsteps: [{steps}]")


PRUNE, SPLIT, TRAIN, QUANTIZE = (
    "activation_pruning: {ratio: 0.2}",
    "low_rank: {energy: 0.9}",
    "distill: {}",
    "quantize: {}",
)


@pytest.mark.parametrize(
    ("steps", "remarks"),
    [
        ((PRUNE, SPLIT, TRAIN, QUANTIZE), {}),
        ((PRUNE, TRAIN, PRUNE, TRAIN), {}),
        ((TRAIN,), {}),
        ((SPLIT, PRUNE, TRAIN), {1: "pruning first gives smaller ones"}),
        ((PRUNE, TRAIN, SPLIT), {2: "distill after it would"}),
        ((TRAIN, PRUNE, TRAIN), {0: "nothing was taken away before it"}),
    ],
)
def test_advice_is_given_where_an_order_is_seldom_wise(steps: tuple[str, ...], remarks: dict[int, str]) -> None:
    found = _recipe(", ".join(steps)).advice()
    assert found.keys() == remarks.keys()
    for at, words in remarks.items():
        assert len(found[at]) == 1 and words in found[at][0]


def test_nothing_is_to_be_said_of_our_own_recipes() -> None:
    assert all(not recipe.advice() for recipe in default_recipes().values())


def test_repeated_steps_are_written_out() -> None:
    short = _recipe(f"repeat: {{times: 2, steps: [{PRUNE}, {TRAIN}]}}, {QUANTIZE}")
    long = _recipe(", ".join((PRUNE, TRAIN, PRUNE, TRAIN, QUANTIZE)))
    assert short == long and Recipe.from_yaml(short.to_yaml()) == long
    nested = _recipe(f"repeat: {{times: 2, steps: [repeat: {{times: 3, steps: [{PRUNE}]}}, distill]}}")
    assert [step.pass_name() for step in nested.steps] == 2 * (3 * ["activation_pruning"] + ["distill"])


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("repeat: {times: 2}", "must read '- repeat"),
        ("repeat: {times: 0, steps: [distill]}", "must read '- repeat"),
        ("repeat: {times: true, steps: [distill]}", "must read '- repeat"),
        ("repeat: {times: 2, steps: [distill], seed: 1}", "must read '- repeat"),
        ("repeat: 3", "must read '- repeat"),
        ("repeat", "unknown pass 'repeat'"),
        ("repeat: {times: 2, steps: []}", f"step 1 of the recipe needs 'steps', a list of 1 to {MOST_STEPS}"),
        (f"repeat: {{times: {MOST_STEPS + 1}, steps: [distill]}}", f"a list of 1 to {MOST_STEPS}"),
        ("repeat: {times: 1000000000000, steps: [distill]}", f"a list of 1 to {MOST_STEPS}"),
        ("repeat: {times: 2, steps: [quantize: {}]}", "step 1 of the recipe, quantize, must be the last"),
        ("repeat: {times: 2, steps: [distil]}", "step 1 of step 1 of the recipe names the unknown pass 'distil'"),
    ],
)
def test_what_cannot_be_repeated_is_refused(steps: str, words: str) -> None:
    with pytest.raises(InvalidRecipe) as refused:
        _recipe(steps)
    assert words in str(refused.value)
