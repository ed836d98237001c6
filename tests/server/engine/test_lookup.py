from __future__ import annotations

from typing import Any

import pytest

from fleetfit.core.errors import InvalidInput, NotFound
from fleetfit.server.engine.lookup import find_job


def test_a_job_is_found_by_its_id_its_end_or_as_the_last(world: Any) -> None:
    for text in (world.job, world.job[-6:], "last"):
        assert world.database.read_now(lambda session, text=text: find_job(session, text).id) == world.job


@pytest.mark.parametrize("text", ["%%%%%%", "______", "%_%_%_%_"])
def test_signs_of_a_pattern_are_no_job(world: Any, text: str) -> None:
    with pytest.raises(NotFound, match="there is no job"):
        world.database.read_now(lambda session: find_job(session, text))


def test_too_little_of_an_id_is_refused(world: Any) -> None:
    with pytest.raises(InvalidInput, match="6 characters or more"):
        world.database.read_now(lambda session: find_job(session, world.job[-5:]))
