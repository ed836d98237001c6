from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.agent.caps import parse_cores
from fleetfit.core.errors import UsageError


@given(st.sets(st.integers(0, 4095), min_size=1, max_size=20))
def test_cores_are_read_as_they_are_written(cores: set[int]) -> None:
    assert parse_cores(",".join(map(str, sorted(cores)))) == cores


def test_ranges_and_blanks() -> None:
    assert parse_cores("0-3, 6") == {0, 1, 2, 3, 6}


@pytest.mark.parametrize("text", ["", "x", "3-1", "-2", "1-", "0-5000", "1,,2"])
def test_what_names_no_processors_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no processors"):
        parse_cores(text)


def test_children_keep_to_the_caps() -> None:
    first = min(os.sched_getaffinity(0))
    code = (
        "import os, subprocess, sys; from fleetfit.agent.caps import apply_caps; apply_caps(sys.argv[1], 300)\n"
        "subprocess.run([sys.executable, '-c', 'import os; from fleetfit.agent.caps import memory_cap;'\n"
        "    'print(sorted(os.sched_getaffinity(0)), memory_cap())'], check=True)"
    )
    command = [sys.executable, "-c", code, str(first)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said == f"[{first}] {300 << 20}\n"


def test_processors_that_are_not_there_are_refused() -> None:
    code = "from fleetfit.agent.caps import apply_caps; apply_caps('4000', 0)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert "--cores 4000: this agent may use the processors" in said
