"""What a confined child can no longer do, tried in one; a hostile model would run exactly there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_HOSTILE = """
import errno, fcntl, json, os, resource, socket, subprocess, sys, termios, threading
from pathlib import Path
from fleetfit.compress import confine as module

taskdir, parent, secret, cuda = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "cuda"
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 8 << 30))
# A device file that every machine has stands for NVIDIA's.
module.device_files = lambda: [Path("/dev/full")]
confined = module.confine(taskdir, cuda=cuda)

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

def use_device():
    device = os.open("/dev/full", os.O_RDWR)
    try:
        fcntl.ioctl(device, termios.TIOCGWINSZ, bytes(8))
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise

def name_thread():
    found = []
    def work():
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("cuda-worker")
        found.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text())
    threading.excepthook = lambda raised: found.append(raised.exc_value)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    assert found == ["cuda-worker\\n"], found

def offer(kind=socket.SOCK_SEQPACKET, name=f"\\0cuda-uvmfd-1-{os.getpid()}"):
    offered = socket.socket(socket.AF_UNIX, kind)
    offered.bind(name)
    offered.listen()
    return offered

found = {
    "confined": confined,
    "for CUDA: use a device": refused(use_device),
    "for CUDA: name a thread": refused(name_thread),
    "for CUDA: offer memory": refused(offer),
    "for CUDA: list devices": refused(lambda: Path("/proc/devices").read_text()),
    "another device": refused(lambda: os.open("/dev/zero", os.O_RDWR)),
    "let others in": refused(lambda: offer(name="\\0cuda-uvmfd-2").accept()),
    "name a socket": refused(lambda: offer(name=str(taskdir / "socket"))),
    "reach a socket": refused(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect("\\0other")),
    "send to a socket": refused(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", "\\0other")),
    "a raw local socket": refused(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_RAW | socket.SOCK_CLOEXEC)),
    "two sockets": refused(socket.socketpair),
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


def tried(tmp_path: Path, compute: str) -> dict[str, str]:
    """What a child that is confined for that could do."""
    state, taskdir = tmp_path / "state", tmp_path / "state" / "tmp" / "task"
    taskdir.mkdir(parents=True)
    secret = state / "secret"
    secret.write_text("the CA's key")
    # Started from the server's state, whose folder `-c` puts in front of Python's path: no reason to read it.
    subprocess.run(
        [sys.executable, "-c", _HOSTILE, str(taskdir), str(os.getpid()), str(secret), compute],
        cwd=state,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": ""},
    )
    found = json.loads((taskdir / "found.json").read_text())
    confined = found.pop("confined")
    if set(confined) != {"landlock", "seccomp"}:
        pytest.skip(f"this kernel and environment confine by {confined} only")
    result: dict[str, str] = found
    return result


def test_a_confined_child_can_do_its_work_and_nothing_else(tmp_path: Path) -> None:
    found = tried(tmp_path, "cpu")
    assert {what for what, how in found.items() if how == "done"} == {"ordinary"}


def test_a_child_that_trains_on_cuda_can_do_what_cuda_needs_and_nothing_else(tmp_path: Path) -> None:
    found = tried(tmp_path, "cuda")
    needed = {what for what in found if what.startswith("for CUDA: ")}
    assert len(needed) == 4
    assert {what for what, how in found.items() if how == "done"} == {"ordinary", *needed}


def test_a_child_that_may_start_one_program_starts_no_other_and_the_program_is_confined(tmp_path: Path) -> None:
    taskdir, secret = tmp_path / "task", tmp_path / "secret"
    taskdir.mkdir()
    secret.write_text("the CA's key")
    tries = (
        "import socket; open('mine', 'w').write('x'); print('wrote')\n"
        f"for what in (lambda: open({str(secret)!r}), socket.socket):\n"
        " try: what()\n"
        " except PermissionError: print('refused')"
    )
    code = (
        "import os, subprocess, sys; from pathlib import Path; from fleetfit.compress.confine import confine\n"
        f"print(sorted(confine(Path({str(taskdir)!r}), programs=[Path(sys.executable)])), flush=True)\n"
        f"subprocess.run([sys.executable, '-c', {tries!r}], cwd={str(taskdir)!r}, check=True)\n"
        "try: os.execv('/bin/true', ['true'])\n"
        "except PermissionError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    said = done.stdout.splitlines()
    if said[0] != "['landlock', 'seccomp']":
        pytest.skip(f"this kernel and environment confine by {said[0]} only")
    assert said[1:] == ["wrote", "refused", "refused", "refused"]


def test_without_landlock_no_program_may_be_started(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.modules['landlock'] = None\n"
        "from pathlib import Path; from fleetfit.compress.confine import confine\n"
        f"print(confine(Path({str(tmp_path)!r}), programs=[Path(sys.executable)]))\n"
        "try: os.execv(sys.executable, ['python', '-c', 'print(1)'])\n"
        "except PermissionError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    if "seccomp" not in done.stdout:
        pytest.skip("this environment has no seccomp")
    assert done.stdout.splitlines() == ["['seccomp']", "refused"]


def test_what_is_missing_is_not_claimed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['landlock'] = None; sys.modules['pyseccomp'] = None\n"
        "from pathlib import Path; from fleetfit.compress.confine import confine\n"
        f"print(confine(Path({str(tmp_path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
