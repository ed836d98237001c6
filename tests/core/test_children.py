from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from fleetfit.core.children import EXIT_OUT_OF_MEMORY, ChildOutcome, Limits, classify, run_child

START = "from fleetfit.core.children import limit_self; limit_self()\n"


def run(code: str, limits: Limits, **more: object) -> object:
    return asyncio.run(run_child(["-c", START + code], limits, **more))  # type: ignore[arg-type]


def test_a_child_that_ends_well() -> None:
    assert run("print('x')", Limits(wall_s=30)).kind == "ok"  # type: ignore[attr-defined]


def test_a_child_that_fails_tells_why() -> None:
    outcome = run("raise SystemExit('no such thing')", Limits(wall_s=30))
    assert outcome.kind == "failed"  # type: ignore[attr-defined]
    assert "no such thing" in outcome.stderr_tail  # type: ignore[attr-defined]


def test_a_child_that_crashes() -> None:
    assert run("import os; os.abort()", Limits(wall_s=30)).kind == "crashed"  # type: ignore[attr-defined]


def test_a_hanging_child_and_its_children_are_killed(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(marker)!r}, 'w').write(str(p.pid))\n"
        "time.sleep(600)"
    )
    began = time.monotonic()
    outcome = run(code, Limits(wall_s=8))
    assert outcome.kind == "timed_out"  # type: ignore[attr-defined]
    assert time.monotonic() - began < 60
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(marker.read_text())) and time.monotonic() < deadline:
        if psutil.Process(int(marker.read_text())).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        assert not psutil.pid_exists(int(marker.read_text()))


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({marker!r}, 'w').write(str(os.getpid()))
        while True:
            sys.stderr.write('still here ')
            sys.stderr.flush()
            time.sleep(0.01)
    os._exit(0)
while not (os.path.exists({marker!r}) and open({marker!r}).read()):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("ends", ["by itself", "by a crash", "by its limit", "by its memory"])
def test_what_left_the_childs_session_is_neither_waited_for_nor_left_behind(tmp_path: Path, ends: str) -> None:
    marker = tmp_path / "pid"
    code = DAEMON.format(marker=str(marker))
    code += {
        "by itself": "sys.stderr.write('done')",
        "by a crash": "os.abort()",
        "by its limit": "time.sleep(600)",
        "by its memory": "raise SystemExit(86)",
    }[ends]
    outcome = run(code, Limits(wall_s=8 if ends == "by its limit" else 60))
    kinds = {"by itself": "ok", "by a crash": "crashed", "by its limit": "timed_out", "by its memory": "out_of_memory"}
    assert outcome.kind == kinds[ends]  # type: ignore[attr-defined]
    assert "still here" in outcome.stderr_tail  # type: ignore[attr-defined]
    assert gone(int(marker.read_text()))


def gone(pid: int) -> bool:
    """Whether a process that was killed has ended, within a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_grandchild_is_killed_with_the_child_that_did_not_start_it(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    daemon = START + DAEMON.format(marker=str(marker)) + "time.sleep(600)"
    middle = (
        "import asyncio\nfrom fleetfit.core.children import Limits, run_child\n"
        f"asyncio.run(run_child(['-c', {daemon!r}], Limits()))"
    )

    async def cancel() -> None:
        task = asyncio.create_task(run_child(["-c", START + middle], Limits()))
        while not (marker.exists() and marker.read_text()):
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert gone(int(marker.read_text()))


def test_of_endless_output_the_end_is_kept_and_the_caller_goes_on() -> None:
    async def both() -> tuple[ChildOutcome, int]:
        code = START + "import sys\nwhile True: sys.stderr.write('x' * 100_000)"
        task, turns = asyncio.create_task(run_child(["-c", code], Limits(wall_s=3))), 0
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        return task.result(), turns

    outcome, turns = asyncio.run(both())
    assert outcome.kind == "timed_out" and outcome.stderr_tail == "x" * 16_384
    # Of about 300; a loop that only reads takes none.
    assert turns > 20


def test_memory_is_limited() -> None:
    code = f"""
try:
    x = bytearray(400_000_000)
except MemoryError:
    raise SystemExit({EXIT_OUT_OF_MEMORY})
"""
    assert run(code, Limits(memory_bytes=200_000_000, wall_s=30)).kind == "out_of_memory"  # type: ignore[attr-defined]
    assert run(code, Limits(memory_bytes=900_000_000, wall_s=30)).kind == "ok"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("limit", "kind"), [(150, "out_of_memory"), (900, "ok")])
def test_what_a_child_forks_counts_where_it_is_expendable(limit: int, kind: str) -> None:
    code = START + (
        "import os, time\n"
        "kept = bytearray(60 << 20)\n"
        "kept[::4096] = bytes(15360)\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        # What all of them share is there once.
        "        own = bytearray(40 << 20)\n"
        "        own[::4096] = bytes(10240)\n"
        "        time.sleep(60)\n"
        "time.sleep(2 if " + str(limit) + " > 500 else 60)\n"
    )
    limits = Limits(memory_bytes=limit << 20, wall_s=30, expendable=True)
    assert asyncio.run(run_child(["-c", code], limits)).kind == kind


@pytest.mark.parametrize(("held", "kind"), [(0, "crashed"), (280 << 20, "out_of_memory")])
def test_a_crash_at_the_limit_is_want_of_memory(held: int, kind: str) -> None:
    code = f"""
import os, signal, time
from fleetfit.core.children import limit_self
limit_self()
kept = bytearray({held})
time.sleep(1)
os.kill(os.getpid(), signal.SIGSEGV)
"""
    outcome = asyncio.run(run_child(["-c", code], Limits(memory_bytes=300 << 20, wall_s=30)))
    assert (outcome.kind, outcome.exit_code) == (kind, -signal.SIGSEGV)


def test_address_space_is_not_memory() -> None:
    # What CUDA does: it takes a range of addresses in which host and devices agree, and memory in it only as that is needed.
    code = f"""
import mmap
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
reserved = mmap.mmap(-1, 1 << 40, flags=private, prot=0)
try:
    mmap.mmap(-1, 400_000_000, flags=private, prot=mmap.PROT_READ | mmap.PROT_WRITE)
except OSError:
    raise SystemExit({EXIT_OUT_OF_MEMORY})
"""
    assert run(code, Limits(memory_bytes=900_000_000, wall_s=30)).kind == "ok"  # type: ignore[attr-defined]
    assert run(code, Limits(memory_bytes=200_000_000, wall_s=30)).kind == "out_of_memory"  # type: ignore[attr-defined]


def test_file_size_is_limited(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'big')!r}, 'wb').write(bytes(10_000_000))"
    assert run(code, Limits(file_bytes=1_000_000, wall_s=30)).kind != "ok"  # type: ignore[attr-defined]
    assert (tmp_path / "big").stat().st_size <= 1_000_000


def test_processor_time_is_limited() -> None:
    outcome = run("while True: pass", Limits(cpu_s=1, wall_s=60))
    assert outcome.kind == "timed_out"  # type: ignore[attr-defined]


def test_cancelling_kills_the_child(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    code = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    async def cancel() -> None:
        task = asyncio.create_task(run_child(["-c", START + code], Limits()))
        while not (marker.exists() and marker.read_text()):
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert not psutil.pid_exists(int(marker.read_text()))


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    child = START + f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent = (
        "import asyncio\nfrom fleetfit.core.children import Limits, run_child\n"
        f"asyncio.run(run_child(['-c', {child!r}], Limits()))"
    )
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", parent], dict(os.environ))
    while not (marker.exists() and marker.read_text()):
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    gone = time.monotonic() + 10
    while psutil.pid_exists(int(marker.read_text())) and time.monotonic() < gone:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(marker.read_text()))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0, "ok"),
        (1, "failed"),
        (EXIT_OUT_OF_MEMORY, "out_of_memory"),
        (-9, "out_of_memory"),
        (-11, "crashed"),
        (-24, "timed_out"),
    ],
)
def test_return_codes_have_names(code: int, kind: str) -> None:
    assert classify(code) == kind


def test_a_child_that_is_expendable_is_the_kernels_first_choice() -> None:
    code = "import pathlib, sys; from fleetfit.core.children import limit_self; limit_self(); " \
           "sys.exit(pathlib.Path('/proc/self/oom_score_adj').read_text().strip() != '1000')"  # fmt: skip
    assert asyncio.run(run_child(["-c", code], Limits(expendable=True))).kind == "ok"
    assert asyncio.run(run_child(["-c", code], Limits())).kind == "failed"
