"""What a confined child can no longer do, tried in one; a hostile model would run exactly there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_HOSTILE = """
import errno, json, os, resource, socket, subprocess, sys
from pathlib import Path
from fleetfit.compress.confine import confine

taskdir, parent, secret = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 8 << 30))
confined = confine(taskdir)

def refused(action):
    try:
        action()
    except (PermissionError, ValueError) as error:
        return type(error).__name__
    except OSError as error:
        if error.errno == errno.EXDEV:
            return "EXDEV"
        raise
    return "done"

def ordinary():
    import tempfile, threading
    import numpy
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    thread = threading.Thread(target=lambda: numpy.ones((64, 64)) @ numpy.ones((64, 64)))
    thread.start()
    thread.join()
    (taskdir / "out").write_text("x")
    Path("/proc/self/status").read_text()
    resource.getrlimit(resource.RLIMIT_DATA)
    os.kill(os.getpid(), 0)

found = {
    "confined": confined,
    "ordinary": refused(ordinary),
    "network": refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
    "local socket": refused(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)),
    "program": refused(lambda: os.execv("/bin/true", ["true"])),
    "signal": refused(lambda: os.kill(parent, 0)),
    "signal to all": refused(lambda: os.kill(-1, 0)),
    "memory limit": refused(lambda: resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))),
    "write elsewhere": refused(lambda: Path(secret).with_name("new").write_text("x")),
    "read elsewhere": refused(lambda: Path(secret).read_text()),
    "read the working folder": refused(lambda: Path(os.getcwd(), "secret").read_text()),
    "read keys": refused(lambda: os.listdir("/etc/ssl")),
    "read a process": refused(lambda: Path(f"/proc/{parent}/environ").read_bytes()),
    "lead astray by a link": refused(lambda: os.symlink(secret, taskdir / "link")),
    "lead astray by a hard link": refused(lambda: os.link(secret, taskdir / "hard")),
    "keep a reader waiting": refused(lambda: os.mkfifo(taskdir / "pipe")),
}
(taskdir / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture
def found(tmp_path: Path) -> dict[str, object]:
    state, taskdir = tmp_path / "state", tmp_path / "state" / "tmp" / "task"
    taskdir.mkdir(parents=True)
    secret = state / "secret"
    secret.write_text("the CA's key")
    # Started from the server's state, whose folder `-c` puts in front of Python's path: no reason to read it.
    subprocess.run(
        [sys.executable, "-c", _HOSTILE, str(taskdir), str(os.getpid()), str(secret)],
        cwd=state,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": ""},
    )
    result: dict[str, object] = json.loads((taskdir / "found.json").read_text())
    return result


def test_a_confined_child_can_do_its_work_and_nothing_else(found: dict[str, object]) -> None:
    confined = found.pop("confined")
    assert isinstance(confined, list)
    if set(confined) != {"landlock", "seccomp"}:
        pytest.skip(f"this kernel and environment confine by {confined} only")
    assert found.pop("ordinary") == "done"
    assert {what for what, how in found.items() if how == "done"} == set()


def test_what_is_missing_is_not_claimed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['landlock'] = None; sys.modules['pyseccomp'] = None\n"
        "from pathlib import Path; from fleetfit.compress.confine import confine\n"
        f"print(confine(Path({str(tmp_path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
