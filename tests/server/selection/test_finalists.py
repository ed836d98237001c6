from __future__ import annotations

import dataclasses

import pytest

from fleetfit.server.report.facts import DeviceFacts, JobFacts
from fleetfit.server.selection.choose import select_variant
from fleetfit.server.selection.finalists import finalists

from .invented import candidate, control, device, job, original


def last(facts: JobFacts, one: DeviceFacts) -> set[str]:
    return finalists(one, select_variant(facts, one))


def test_the_chosen_one_and_its_original_are_the_finalists() -> None:
    one = device(original(), control(), candidate("small"), candidate("slow", ratio=(0.5, 0.4, 0.6)))
    assert last(job(one), one) == {"small/1/1", "original/1/1"}


def test_the_original_is_the_one_under_the_chosen_ones_condition() -> None:
    many = [original(threads=4, p50=0.5), candidate("small", threads=4, p50=0.2)]
    one = device(original(), candidate("small"), *many)
    assert last(job(one), one) == {"small/4/1", "original/4/1"}


def test_where_limits_left_nothing_what_came_nearest_is_a_finalist() -> None:
    one = device(original(), candidate("small"), drops={"small": 5.0})
    choice = select_variant(job(one), one)
    assert choice.selected is None and choice.closest == "small/1/1"
    assert last(job(one), one) == {"small/1/1", "original/1/1"}


@pytest.mark.parametrize("kind", ["bench", "compress"])
def test_without_a_choice_the_originals_of_all_runtimes_are_under_their_first_condition(kind: str) -> None:
    one = device(
        original(runtime="onnxruntime", beside="onnxruntime"),
        original(runtime="openvino", beside="onnxruntime"),
        original(runtime="onnxruntime", beside="onnxruntime", threads=4),
        emulated=True,
    )
    facts = dataclasses.replace(job(one), kind=kind)
    assert last(facts, one) == {"original/1/1/onnxruntime", "original/1/1/openvino"}


def test_what_was_not_measured_is_no_finalist() -> None:
    one = device(original(state="failed"), candidate("small", state="failed"))
    assert last(job(one), one) == set()
