"""The installer's parts; tests/system/test_install.py runs the whole line."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import http.server
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetfit.server.install import on_device
from fleetfit.server.install.on_device import Failed, Progress, fetch, find_python, main, prepare

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Link(http.server.BaseHTTPRequestHandler):
    """A server at the far end of a bad link: `cuts` says after how many bytes each answer breaks off."""

    cuts: list[int] = []
    asked: list[str] = []
    ranges = True

    def do_GET(self) -> None:
        if self.path != "/wheels/a.whl":
            self.send_error(404)
            return
        wanted = self.headers.get("Range", "")
        self.asked.append(wanted)
        begin = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if self.ranges else 0
        rest = CONTENT[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.cuts.pop(0)] if self.cuts else rest)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Link, "cuts", [])
    monkeypatch.setattr(Link, "asked", [])
    monkeypatch.setattr(Link, "ranges", True)
    monkeypatch.setattr(on_device.time, "sleep", lambda seconds: None)
    server = http.server.HTTPServer(("127.0.0.1", 0), Link)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/wheels/"
    server.shutdown()
    thread.join()
    server.server_close()


def get(address: str, folder: Path, digest: str = DIGEST) -> Path:
    fetch(address, str(folder / "a.whl"), len(CONTENT), digest, Progress(len(CONTENT)))
    return folder / "a.whl"


@pytest.mark.parametrize("cuts", [[], [0], [70_000, 1, 100_000], [256_000 - 1]])
def test_a_broken_download_goes_on_where_it_stopped(link: str, tmp_path: Path, cuts: list[int]) -> None:
    Link.cuts = list(cuts)
    assert get(link + "a.whl", tmp_path).read_bytes() == CONTENT
    starts, expected = 0, []
    for cut in [*cuts, 0]:
        expected.append(f"bytes={starts}-" if starts else "")
        starts += cut
    assert Link.asked == expected and list(tmp_path.iterdir()) == [tmp_path / "a.whl"]


def test_a_server_that_knows_no_ranges_sends_all_again(link: str, tmp_path: Path) -> None:
    (tmp_path / "a.whl.part").write_bytes(CONTENT[:500])
    Link.ranges = False
    # Without ranges it answers as if nothing was asked for.
    assert get(link + "a.whl", tmp_path).read_bytes() == CONTENT


def test_a_link_that_brings_nothing_is_given_up_with_a_sentence(link: str, tmp_path: Path) -> None:
    Link.cuts = [0] * 99
    with pytest.raises(Failed, match="cannot be fetched .*paste the line again"):
        get(link + "a.whl", tmp_path)
    assert len(Link.asked) == on_device.TRIES


def test_what_has_another_digest_is_never_kept(link: str, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="is not what the line promises"):
        get(link + "a.whl", tmp_path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_what_the_server_has_no_more_needs_a_new_line(link: str, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="make a new line with `fleetfit devices enroll`"):
        get(link + "b.whl", tmp_path)


def test_it_can_be_read_by_old_pythons() -> None:
    """Down to 3.6, so that such a one says that it is too old."""
    ast.parse(Path(on_device.__file__).read_text(), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda patch: patch.setattr(sys, "maxsize", 2**31 - 1), "32-bit .*64-bit version"),
        (lambda patch: patch.setattr(platform, "libc_ver", lambda: ("", "")), "no glibc"),
        (
            lambda patch: patch.setattr(on_device, "CPP_LIBRARY", "libnowhere.so.6"),
            "no libnowhere.so.6, which gRPC needs",
        ),
        (lambda patch: patch.setattr(platform, "system", lambda: "Darwin"), "run on Linux; this is Darwin"),
        (
            lambda patch: patch.setattr(platform, "machine", lambda: "riscv64"),
            r"no wheels for cp\d+-riscv64.*wheels fetch",
        ),
        (lambda patch: patch.setattr(sys, "version_info", (3, 8, 10)), r"the agent needs 3\.10 to 3\.14"),
    ],
)
def test_a_device_that_cannot_be_served_is_told_why(monkeypatch: pytest.MonkeyPatch, change: Any, words: str) -> None:
    monkeypatch.setattr(on_device, "MANIFEST", {"targets": {"cp399-x86_64": {}}, "files": {}})
    change(monkeypatch)
    with pytest.raises(Failed, match=words):
        find_python()


def test_another_python_of_the_system_serves_where_the_first_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = {f"cp311-{platform.machine()}": {}, f"cp310-{platform.machine()}": {}}
    monkeypatch.setattr(on_device, "MANIFEST", {"targets": targets, "files": {}})
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(
        shutil, "which", lambda name: f"/usr/bin/{name}" if name in ("python3.10", "python3.13") else None
    )
    assert find_python() == "/usr/bin/python3.10"


def test_runtimes_are_those_of_the_server_or_those_asked_for() -> None:
    target = {"runtimes": {"ncnn": [], "onnxruntime": []}}
    assert on_device.wanted_runtimes(target, None) == ["ncnn", "onnxruntime"]
    assert on_device.wanted_runtimes(target, ["ncnn"]) == ["ncnn"]
    assert on_device.wanted_runtimes(target, ["none"]) == []
    with pytest.raises(Failed, match="no wheels of openvino .*it has ncnn, onnxruntime.*--runtime openvino"):
        on_device.wanted_runtimes(target, ["openvino,ncnn"])


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with pytest.raises(Failed, match="holds other things"):
        prepare(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


def test_too_little_room_is_found_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "MANIFEST", {"targets": {}, "files": {"a.whl": [1 << 50, "", 1 << 51]}})
    with pytest.raises(Failed, match="MB are needed; make room"):
        on_device.check_room(str(tmp_path), ["a.whl"])


def test_what_cannot_be_compiled_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$@" "[$PYTHONDONTWRITEBYTECODE]" > "$0.asked"; echo said; echo said >&2; exit 139\n'
    )
    python.chmod(0o755)
    on_device.compile_used(str(python), on_device.clean_environment())
    assert (tmp_path / "python.asked").read_text() == "-m fleetfit.agent.precompile []\n"
    assert capfd.readouterr() == ("", "")
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(on_device, "COMPILE_S", 0.2)
    on_device.compile_used(str(python), dict(os.environ))
    assert "took too long" in capfd.readouterr().err


@pytest.mark.parametrize(
    "setting",
    [
        # What was left out when it was installed would come with the first use.
        "PYTHONDONTWRITEBYTECODE=1",
        # A checkout, or a folder of that name, in the folder from where it is called.
        "PYTHONSAFEPATH=1",
        "PYTHONNOUSERSITE=1",
    ],
)
def test_the_agents_python_runs_with_the_same_settings_whoever_starts_it(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    name, _, value = setting.partition("=")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv(name, "")
    assert setting in on_device.launcher("/srv/agent").decode().split()
    assert f"Environment={on_device.SETTINGS}" in on_device.unit("/srv/agent", "daemon", "yes").decode()
    assert setting in on_device.SETTINGS.split()
    environment = on_device.clean_environment()
    assert environment[name] == value and "PYTHONPATH" not in environment and environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            """echo '{"error": {"message": "the token is spent"}}'; echo 'fleetfit: the token is spent' >&2; exit 1""",
            "the token is spent",
        ),
        (
            "echo first >&2; echo 'no such library' >&2; exit 1",
            "`fleetfit agent enroll` gave no answer (no such library)",
        ),
        ("kill -SEGV $$", "`fleetfit agent enroll` gave no answer (exit code -11)"),
        ("echo hello; exit 0", "`fleetfit agent enroll` gave no answer (exit code 0)"),
    ],
)
def test_what_the_new_agent_says_is_told_once_and_is_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], script: str, words: str
) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    options = on_device.parse(["url", "digest", "--server", "a:1", "--token", "t", "--dir", str(tmp_path)])
    with pytest.raises(Failed) as caught:
        on_device.enrol(str(tmp_path), "", options)
    assert str(caught.value) == f"it is installed, but {words}"
    assert capfd.readouterr() == ("", "")
    # What comes after the enrolment is done all the same.
    (finding,) = on_device.doctor(str(tmp_path), "")
    assert finding["verdict"] == "missing" and finding["found"] == words.replace("enroll", "doctor")
    assert f"{tmp_path}/fleetfit agent doctor" in capfd.readouterr().err


def planted(folder: Path) -> Path:
    """A folder as an installation leaves it, without what is large."""
    prepare(str(folder))
    for name in ("venv-1", "state", "wheels"):
        (folder / name).mkdir()
    for name in ("fleetfit", "install.py", "install.py.new", "state/result", "venv-1/python"):
        (folder / name).write_text("")
    (folder / "venv").symlink_to("venv-1")
    return folder


def test_uninstalling_leaves_nothing_of_its_own_and_all_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = planted(tmp_path / "made" / "agent")
    assert main(["--uninstall", "--dir", str(folder)]) == 0
    assert list(tmp_path.iterdir()) == []
    folder = planted(tmp_path / "made" / "agent")
    (folder / "notes.new").write_text("mine")
    (folder.parent / "other").write_text("mine")
    assert main(["--uninstall", "--dir", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == ["notes.new"]
    assert [path.name for path in folder.iterdir()] == ["notes.new"] and (folder.parent / "other").exists()


def test_what_was_not_installed_cannot_be_uninstalled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--uninstall", "--dir", str(tmp_path)]) == 1
    assert "nothing was installed" in capsys.readouterr().err


def test_an_agent_that_works_is_not_pulled_from_under_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = planted(tmp_path / "agent")
    with (folder / "state" / "agent.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["--uninstall", "--dir", str(folder)]) == 1
    assert "stop it first" in capsys.readouterr().err and (folder / "venv-1" / "python").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs the whole line"),
        (["http://127.0.0.1:1", "0" * 64, "--dir", "/tmp/a b"], "cannot use a folder named"),
        (["http://127.0.0.1:1", "0" * 64], "not the one of the line"),
    ],
)
def test_a_line_that_is_not_whole_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(on_device, "default_folder", lambda: str(tmp_path / "agent"))
    assert main([*arguments, "--json"]) == 1
    said = capsys.readouterr()
    assert words in json.loads(said.out)["error"]["message"] and said.err.count("\n") == 1
    assert not (tmp_path / "agent").exists()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("home", ["yes", "read-only"])
def test_systemd_understands_the_unit_and_calls_it_confined(tmp_path: Path, home: str) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/true")
    unit = tmp_path / "fleetfit-agent.service"
    unit.write_bytes(on_device.unit(str(tmp_path), "daemon", home))
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert not [line for line in verified.stderr.splitlines() if str(unit) in line or "fleetfit" in line], (
        verified.stderr
    )
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(unit)],
        capture_output=True,
        text=True,
        env=os.environ | {"SYSTEMD_COLORS": "0"},
    )
    assert judged.returncode == 0, judged.stdout[-400:]
