from __future__ import annotations

import grpc
import pytest

from fleetfit.core.errors import ChildFailed, FleetfitError, InvalidData, LeaseLost, error_types, rebuild

ALL = sorted(error_types().items())


def test_codes_are_unique() -> None:
    kinds: list[type[FleetfitError]] = []
    stack: list[type[FleetfitError]] = [FleetfitError]
    while stack:
        kind = stack.pop()
        kinds.append(kind)
        stack.extend(kind.__subclasses__())
    assert len({kind.code for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(("code", "kind"), ALL)
def test_every_error_has_a_grpc_status(code: str, kind: type[FleetfitError]) -> None:
    assert kind.status in grpc.StatusCode.__members__


@pytest.mark.parametrize(("code", "kind"), ALL)
def test_every_error_survives_the_wire(code: str, kind: type[FleetfitError]) -> None:
    again = rebuild(code, "what, with what, what to do")
    assert type(again) is kind
    assert again.message == "what, with what, what to do"


def test_an_unknown_code_becomes_the_nearest_known_type() -> None:
    assert rebuild("FROM_THE_FUTURE", "x", status="NOT_FOUND").code == "NOT_FOUND"
    assert type(rebuild("FROM_THE_FUTURE", "x", status="NO_SUCH")) is FleetfitError


def test_types_tell_what_may_be_caught() -> None:
    assert issubclass(LeaseLost, FleetfitError)
    error = InvalidData("images have NaN", field="images", private="at index 3")
    assert str(error) == "images have NaN"
    assert (error.field, error.private) == ("images", "at index 3")
    assert ChildFailed("x", outcome="timed_out").outcome == "timed_out"
