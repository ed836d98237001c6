from __future__ import annotations

import re

import pytest

from fleetfit.server.storage import ids
from fleetfit.server.storage.ids import new_id, start_after

DAY_MS = 24 * 3600 * 1000


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_newest_ms", 0)


def test_ids_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_id() for _ in range(1000)]
    assert made == sorted(made) and len(set(made)) == 1000
    assert all(re.fullmatch("[0-9a-hjkmnp-tv-z]{26}", one) for one in made)


def test_a_clock_that_is_set_back_does_not_turn_the_order_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now = ids.now_ms()
    before = [new_id() for _ in range(3)]
    monkeypatch.setattr(ids, "now_ms", lambda: now - 5 * DAY_MS)
    after = [new_id() for _ in range(3)]
    assert [*before, *after] == sorted([*before, *after])


@pytest.mark.parametrize("ahead", [-5, 5])
def test_a_server_that_starts_with_another_clock_goes_on_after_its_newest_id(
    monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    now = ids.now_ms()
    monkeypatch.setattr(ids, "now_ms", lambda: now + ahead * DAY_MS)
    newest = new_id()
    monkeypatch.setattr(ids, "_newest_ms", 0)
    monkeypatch.setattr(ids, "now_ms", lambda: now)
    start_after(newest)
    assert new_id() > newest
