from __future__ import annotations

from typing import Any

import pytest

from fleetfit.client.demo.claims import claims, sentence


def candidate(recipe: str, role: str = "recipe", **own: Any) -> dict[str, Any]:
    base = {
        "recipe": recipe,
        "role": role,
        "parameters": 1000,
        "size_bytes": 4000,
        "total_operators": 0,
        "drop": {"value": 0.3},
        "test_drop": None,
        "speedup": {"original": {"ratio": 2.0, "ci95": [1.9, 2.1]}},
        "selected": False,
    }
    return base | own


def report(*candidates: dict[str, Any]) -> dict[str, Any]:
    return {"devices": [{"device": "box", "candidates": [candidate("original", "original"), *candidates]}]}


SMALL = candidate("pruned", parameters=250, size_bytes=1000)
CHOSEN = candidate(
    "all-four", parameters=200, size_bytes=300, total_operators=4, test_drop={"value": 0.1}, selected=True
)


def test_a_small_quick_and_accurate_pair_holds() -> None:
    plain, chosen = claims(report(SMALL, CHOSEN))
    assert (plain.recipe, plain.kind, plain.holds) == ("pruned", "unquantized", True)
    assert (chosen.recipe, chosen.kind, chosen.holds) == ("all-four", "selected", True)
    assert plain.fewer_parameters == pytest.approx(0.75)
    assert chosen.fewer_bytes == pytest.approx(0.925)


@pytest.mark.parametrize(
    "worse",
    [
        {"drop": {"value": 0.63}},
        {"drop": None},
        {"parameters": 281},
        {"speedup": {"original": {"ratio": 1.1, "ci95": [0.99, 1.2]}}},
        {"speedup": {"original": None}},
        {"total_operators": 4},
    ],
)
def test_whatever_misses_one_bound_does_not_hold(worse: dict[str, Any]) -> None:
    plain, _ = claims(report(SMALL | worse, CHOSEN))
    assert not plain.holds


@pytest.mark.parametrize(
    "worse",
    [
        {"test_drop": {"value": 0.63}},
        {"test_drop": None},
        {"size_bytes": 601},
        {"drop": {"value": 0.7}},
        {"speedup": {"original": {"ratio": 1.1, "ci95": [1.0, 1.2]}}},
    ],
)
def test_the_selected_one_must_hold_on_both_splits(worse: dict[str, Any]) -> None:
    _, chosen = claims(report(SMALL, CHOSEN | worse))
    assert not chosen.holds


def test_among_several_the_one_that_holds_stands_for_all() -> None:
    lossy = candidate("lossy", parameters=100, drop={"value": 3.0})
    plain, _ = claims(report(lossy, SMALL, CHOSEN))
    assert plain.recipe == "pruned"


def test_where_there_is_none_the_sentence_says_so() -> None:
    plain, chosen = claims(report(candidate("large", parameters=900)))
    assert (plain.recipe, chosen.recipe, plain.holds, chosen.holds) == (None, None, False, False)
    assert sentence(chosen) == "box, selected: no candidate"


def test_a_claim_in_words_has_all_its_figures() -> None:
    _, chosen = claims(report(SMALL, CHOSEN))
    assert sentence(chosen) == (
        "box, selected: all-four: 80.0 % fewer parameters, 92.5 % fewer bytes, loses 0.30 points, 0.10 on the test split, "
        "2.00 times as fast (1.90 to 2.10)"
    )
