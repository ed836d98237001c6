"""The line that `devices enroll` prints, pasted into a shell in an empty folder: from nothing to an agent, and back."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..server.install.repacked import repack
from .conftest import Fleet, wait_for

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(400)]


def paste(fleet: Fleet, line: str, folder: Path, *more: str) -> tuple[int, Any, str]:
    """Paste a line; exit code, the last object on standard output, and what was said."""
    (fleet.root / "empty").mkdir(exist_ok=True)
    # Nothing of this test's environment, and no way to anywhere but this machine.
    environment = {
        "PATH": f"{Path(sys.executable).resolve().parent}:/usr/bin:/bin",
        "HOME": str(fleet.root / "home"),
        "FLEETFIT_HOST_LOCK": fleet.environment["FLEETFIT_HOST_LOCK"],
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1",
        "PIP_INDEX_URL": "http://127.0.0.1:9",
    }
    command = f"{line} {shlex.join(['--dir', str(folder), '--json', *more])}"
    done = subprocess.run(
        ["sh", "-c", command], env=environment, cwd=fleet.root / "empty", capture_output=True, text=True, timeout=200
    )
    lines = done.stdout.strip().splitlines() or ["null"]
    return done.returncode, json.loads(lines[-1]), done.stderr


def test_the_line_makes_an_agent_again_changes_nothing_and_uninstall_leaves_nothing(
    make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    fleet = make_fleet()
    without = fleet.run("devices", "enroll", "--json").json
    assert without["install"] is None and without["install_for"] == []
    repack(tmp_path / "come", ["fleetfit", "pip"])
    wheels = sorted(str(path) for path in (tmp_path / "come").iterdir())
    listed = fleet.run("server", "--state", str(fleet.root / "state"), "wheels", "add", *wheels, "--json").json
    target = f"cp{sys.version_info[0]}{sys.version_info[1]}-x86_64"
    assert [name for name, facts in listed["targets"].items() if facts["agent"]] == [target]
    # The server that runs has noticed.
    made = fleet.run("devices", "enroll", "--name", "pi", "--json").json
    assert made["install_for"] == [target] and made["install"].startswith("python3 -c ")

    folder = tmp_path / "device" / "agent"
    other = re.sub(r" [0-9a-f]{64} ", f" {'0' * 64} ", made["install"])
    code, _, said = paste(fleet, other, folder)
    assert code == 1 and said == "another installer than this line is for: nothing was run\n"
    assert not folder.parent.exists()

    code, found, said = paste(fleet, made["install"], folder)
    assert code == 0, said
    assert (found["device"], found["target"], found["renewed"], found["service"]) == ("pi", target, True, None)
    verdicts = {finding["what"]: finding["verdict"] for finding in found["findings"]}
    assert verdicts["identity"] == "ok" and verdicts["server"] == "ok" and verdicts["runtime"] == "missing"
    assert fleet.run("devices", "list", "--json").json["devices"][0]["state"] == "enrolled"

    # Small boards have little room: a part of what a server has, and compiled what the agent imports, before and after its use.
    (site,) = folder.glob("venv-*/lib/python3*/site-packages")
    assert not (site / "fleetfit" / "server").exists() and not (site / "yaml").exists()
    refused = subprocess.run([folder / "fleetfit", "jobs", "list", "--json"], capture_output=True, text=True)
    assert "not part of what a device is given" in json.loads(refused.stdout)["error"]["message"]
    compiled = sorted(site.rglob("*.pyc"))
    modules = {path.name.partition(".")[0] for path in compiled}
    assert {"session", "work_pb2", "_channel"} <= modules and not {"doctor", "console", "lexer"} & modules

    agent = subprocess.Popen(
        [folder / "fleetfit", "agent", "--json"],
        env={"PATH": os.environ["PATH"], "FLEETFIT_HOST_LOCK": fleet.environment["FLEETFIT_HOST_LOCK"]},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(
            lambda: fleet.run("devices", "list", "--json").json["devices"][0]["state"] == "online", "the agent online"
        )
        uninstall = f"python3 {folder}/install.py --uninstall"
        code, refused, _ = paste(fleet, uninstall, folder)
        assert code == 1 and "stop it first" in refused["error"]["message"]
    finally:
        agent.terminate()
        agent.wait(20)
    assert sorted(site.rglob("*.pyc")) == compiled

    before = (folder / "venv").readlink()
    code, found, said = paste(fleet, fleet.run("devices", "enroll", "--json").json["install"], folder)
    assert code == 0 and (found["device"], found["renewed"]) == ("pi", False), said
    assert "up to date" in said and "already enrolled as pi" in said
    assert (folder / "venv").readlink() == before

    code, gone, said = paste(fleet, uninstall, folder)
    assert code == 0 and gone == {"dir": str(folder), "removed": True, "left": []}, said
    assert not folder.parent.exists()
    assert list((fleet.root / "empty").iterdir()) == [] and not (fleet.root / "home").exists()
