from __future__ import annotations

import pytest

from fleetfit.client.commands.options import spell_out

OPTIONS = {"--on": "many", "--threads": "many", "--data": "one", "--wait": "none"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("m --on a b c", "m --on a --on b --on c"),
        ("m --on a b --data d", "m --on a --on b --data d"),
        ("m --threads 1 2 --on a", "m --threads 1 --threads 2 --on a"),
        ("--on a m", "--on a m"),
        ("--on a m --on b c", "--on a m --on b --on c"),
        ("m --data d x", "m --data d x"),
        ("m --wait x", "m --wait x"),
        ("m --on a -- b", "m --on a -- b"),
        ("m --on", "m --on"),
        ("m --on=a b", "m --on=a b"),
    ],
)
def test_values_that_follow_belong_to_the_option(typed: str, meant: str) -> None:
    assert spell_out(typed.split(), OPTIONS, arguments=1) == meant.split()
