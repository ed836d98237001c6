"""Recipes: what is read, what is refused and how, and that the same recipe always has the same key."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.compress.passes.base import Needs, Stage
from fleetfit.compress.recipe import CONTROL, ORIGINAL, Recipe, default_recipes, named_recipe
from fleetfit.core.digests import key_of
from fleetfit.core.errors import InvalidRecipe, NotFound

DESIGNED = """
name: small-and-quick
steps:
  - activation_pruning: {threshold: 0.4}      # or {ratio: 0.7}
  - low_rank: {energy: 0.95}
  - distill: {epochs: 5, temperature: 4}
  - quantize: {dtype: int8, mode: static}
"""


def test_the_recipe_of_the_manual_is_read() -> None:
    recipe = Recipe.from_yaml(DESIGNED)
    assert [step.pass_name() for step in recipe.steps] == ["activation_pruning", "low_rank", "distill", "quantize"]
    assert recipe.steps[0].parameters()["threshold"] == 0.4
    assert recipe.needs_data() and recipe.needs_trainable()


def test_the_canonical_text_reads_back_as_the_same_recipe() -> None:
    for recipe in (Recipe.from_yaml(DESIGNED), *default_recipes().values()):
        again = Recipe.from_yaml(recipe.to_yaml())
        assert again == recipe
        assert again.to_yaml() == recipe.to_yaml()


def test_key_does_not_depend_on_name_order_or_defaults_written_out() -> None:
    short = Recipe.from_yaml("name: a\nsteps:\n  - quantize: {mode: dynamic}\n")
    long = Recipe.from_yaml("name: b\nsteps: [{quantize: {per_channel: true, mode: dynamic, dtype: int8}}]\n")
    assert key_of(short.key_material()) == key_of(long.key_material())
    other = Recipe.from_yaml("name: a\nsteps:\n  - quantize: {mode: dynamic, per_channel: false}\n")
    assert key_of(other.key_material()) != key_of(short.key_material())


_CUTS = {
    "activation_pruning": {"ratio": 0.5},
    "zero_pruning": {"ratio": 0.5},
    "taylor_pruning": {"ratio": 0.5},
    "redundancy_pruning": {"energy": 0.9},
    "low_rank": {"energy": 0.9},
}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(_CUTS)), st.none() | st.integers(1, 64)), min_size=1, max_size=4),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_a_recipe_is_fitted_once_and_its_own_widths_stay(
    cuts: list[tuple[str, int | None]], round_to: int, other: int
) -> None:
    steps = [{name: _CUTS[name] | ({} if own is None else {"round_to": own})} for name, own in cuts]
    recipe = Recipe.from_yaml(str({"name": "a", "steps": [*steps, {"quantize": {"mode": "dynamic"}}]}))
    fitted = recipe.fitted(round_to)
    assert [step.parameters().get("round_to") for step in fitted.steps] == [own or round_to for _, own in cuts] + [None]
    again = Recipe.from_yaml(fitted.to_yaml())
    assert again == fitted == fitted.fitted(other) and again.key_material() == fitted.key_material()
    differ = round_to != other and any(own is None for _, own in cuts)
    assert (recipe.fitted(other).key_material() != fitted.key_material()) is differ


def test_single_weights_have_no_width_to_fit() -> None:
    recipe = Recipe.from_yaml("{name: a, steps: [zero_pruning: {ratio: 0.5, pattern: unstructured}]}")
    assert recipe.fitted(16) == recipe


def test_the_default_set_takes_the_width_of_the_device() -> None:
    for recipe in default_recipes().values():
        cuts = [step for step in recipe.steps if step.stage in (Stage.PRUNE, Stage.FACTORIZE)]
        assert [step.parameters().get("round_to") for step in cuts] == [None] * len(cuts)
        assert (recipe.fitted(4) != recipe) is bool(cuts)


def test_key_changes_with_a_pass_version(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.from_yaml(DESIGNED)
    before = key_of(recipe.key_material())
    monkeypatch.setattr(type(recipe.steps[1]), "version", 99)
    assert key_of(recipe.key_material()) != before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs the keys 'name' and 'steps'"),
        ("name: a\nsteps: []", "a list of 1 to"),
        ("name: a\nsteps:\n - quantise: {}", "did you mean 'quantize'?"),
        ("name: a\nsteps:\n - zzz: {}", "there are activation_pruning, distill, low_rank, quantize"),
        ("name: a\nsteps:\n - quantize: {mod: static}", "did you mean 'mode'?"),
        ("name: a\nsteps:\n - activation_pruning: {thresold: 0.4}", "did you mean 'threshold'?"),
        ("name: a\nsteps:\n - quantize: {mode: statik}", "'static' or 'dynamic', not 'statik'"),
        ("name: a\nsteps:\n - distill: {epochs: -1}", "greater than 0, not -1"),
        ("name: a\nsteps:\n - distill: {temperature: .inf}", "'temperature'"),
        ("name: a\nsteps:\n - activation_pruning: {threshold: .nan}", "'threshold'"),
        ("name: a\nsteps:\n - activation_pruning", "give one of 'threshold', 'ratio' or 'budget'"),
        (
            "name: a\nsteps:\n - activation_pruning: {ratio: 0.5, threshold: 1}",
            "give one of 'threshold', 'ratio' or 'budget'",
        ),
        ("name: a\nsteps:\n - quantize: {}\n - distill: {}", "must be the last"),
        ("name: a\nstep:\n - quantize: {}", "unknown key 'step'"),
        ("name: a/../b\nsteps:\n - quantize: {}", "a recipe's name"),
        ("steps:\n - quantize: {}", "needs a 'name'"),
        ("name: a\nsteps:\n - {quantize: {}, distill: {}}", "must read"),
        ("name: a\nsteps:\n - quantize: 3", "must be a mapping"),
        ("name: a\nsteps: [quantize: {1: 2}]", "have names"),
        ("name: [", "is not YAML in line"),
        ("name: a\nname: b\nsteps:\n - quantize: {}", "'name' twice"),
        ("name: a\nsteps:\n - distill: {epochs: 1, epochs: 2}", "'epochs' twice"),
        ("name: &a b\nsteps: [*a]", "alias"),
        ("name: 2026-99-99\nsteps: []", "is not YAML"),
        ("[" * 50_000, "is not YAML"),
        ('name: a\nsteps:\n - "\\a": {}', "unknown pass '\\x07'"),
        ("x" * 70_000, "longer than"),
        ("name: !!python/object/apply:os.system [echo]\nsteps: []", "line 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.from_yaml(text, source="mine.yaml")
    message = caught.value.message
    assert words in message
    assert "mine.yaml" in message
    assert "\n" not in message and len(message) < 400


_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_PARAMETERS = st.dictionaries(
    st.sampled_from(["ratio", "threshold", "energy", "epochs", "mode", "samples", "batch", "round_to"])
    | st.text(max_size=4),
    _PLAIN | st.lists(_PLAIN, max_size=2),
    max_size=3,
)
_STEPS = st.lists(
    st.dictionaries(
        st.sampled_from(["quantize", "distill", "low_rank", "activation_pruning"]) | _PLAIN,
        _PARAMETERS | _PLAIN,
        max_size=2,
    )
    | _PLAIN,
    max_size=4,
)


@given(st.text(max_size=60) | st.builds(lambda name, steps: str({"name": name, "steps": steps}), _PLAIN, _STEPS))
def test_any_text_is_a_recipe_or_refused_in_one_sentence(text: str) -> None:
    try:
        recipe = Recipe.from_yaml(text)
    except InvalidRecipe as error:
        assert error.message and len(error.message) < 600
        assert error.message.isprintable()
    else:
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_the_names_of_baselines_are_not_for_users() -> None:
    for name in (ORIGINAL, CONTROL):
        with pytest.raises(InvalidRecipe, match="choose another name"):
            Recipe.from_user(f"name: {name}\nsteps:\n - quantize: {{}}")
    assert Recipe.from_user(DESIGNED) == Recipe.from_yaml(DESIGNED)


def test_original_has_no_steps_and_needs_nothing() -> None:
    recipe = named_recipe("original")
    assert recipe.steps == () and not recipe.needs_data() and recipe.training(100) is None


def test_control_gets_as_much_training_as_all_steps_together() -> None:
    recipe = Recipe.from_yaml(
        "name: a\nsteps: [distill: {epochs: 2, batch: 8}, low_rank: {ratio: 0.5}, distill: {epochs: 7, batch: 9}]"
    )
    training = recipe.training(100)
    assert training is not None and (training["epochs"], training["batch"]) == (9, 9)
    control = Recipe.control(training)
    assert control.name == CONTROL
    assert [step.pass_name() for step in control.steps] == ["distill"]
    assert control.steps[0].parameters() == training
    assert Recipe.from_yaml(control.to_yaml()) == control


def test_control_gets_no_less_where_steps_train_on_different_numbers_of_samples() -> None:
    recipe = Recipe.from_yaml("name: a\nsteps: [distill: {epochs: 100, samples: 10}, distill: {epochs: 5}]")
    control = Recipe.control(recipe.training(100) or {})
    assert control.training_effort(100) == recipe.training_effort(100) == 1500


def test_dynamic_quantization_needs_no_data() -> None:
    assert not Recipe.from_yaml("name: a\nsteps: [quantize: {mode: dynamic}]").needs_data()
    assert Recipe.from_yaml("name: a\nsteps: [quantize: {mode: static}]").needs_data()


def test_default_set_has_six_recipes_over_all_four_passes() -> None:
    recipes = default_recipes()
    assert len(recipes) >= 6
    used = {step.pass_name() for recipe in recipes.values() for step in recipe.steps}
    assert used >= {"activation_pruning", "low_rank", "distill", "quantize"}
    assert len({key_of(recipe.key_material()) for recipe in recipes.values()}) == len(recipes)
    without_integers = [r for r in recipes.values() if all(step.pass_name() != "quantize" for step in r.steps)]
    assert without_integers


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean 'int8-static'"):
        named_recipe("int8-statc")


def test_every_pass_declares_what_it_needs() -> None:
    for recipe in default_recipes().values():
        for step in recipe.steps:
            assert step.wants() <= step.needs <= frozenset(Needs)


def test_reading_recipes_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fleetfit.compress.recipe import default_recipes; default_recipes();"
        "import fleetfit.compress.tasks; print([m for m in ('torch', 'numpy', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
