"""The wheel, in an environment of its own, does what the checkout does: nothing is read from the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that has the wheel; what fleetfit needs comes from this one's packages."""
    repository = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # Of the files that git knows: what lies about in a checkout must not make a wheel whole.
    files = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True).stdout
    subprocess.run(["git", "init", "-q", source], check=True)
    for name in filter(None, files.decode().split("\0")):
        path = repository / name
        if path.is_symlink() or path.exists():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                target.symlink_to(os.readlink(path))
            elif path.is_file():
                target.write_bytes(path.read_bytes())
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist")], source)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")}))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    _run([*pip, "--target", str(site), str(wheel)], folder)
    # A plain path: the .pth files of that folder, the checkout's editable install among them, are not read.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _run(command: list[str], folder: Path, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLEETFIT_", "PYTHON"))}
    done = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def test_it_is_the_wheel_that_is_tried(installed: Path, tmp_path: Path) -> None:
    found = _run([str(installed), "-c", "import fleetfit.server; print(fleetfit.server.__file__)"], tmp_path)
    assert Path(found.strip()).is_relative_to(installed.parents[1])


def test_the_demo_runs_from_the_wheel_in_another_folder(installed: Path, tmp_path: Path) -> None:
    own = {
        "FLEETFIT_CACHE_DIR": str(tmp_path / "cache"),
        "FLEETFIT_HOST_LOCK": str(tmp_path / "host.lock"),
        "OMP_NUM_THREADS": "1",
    }
    out = _run([str(installed), "-m", "fleetfit", "demo", "--quick", "--json", "-o", "out"], tmp_path, **own)
    report: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    assert [device["device"] for device in report["devices"]] == ["one-thread", "two-threads"]
    for device in report["devices"]:
        assert [c["role"] for c in device["candidates"]][:2] == ["original", "control"]
        assert all(c["status"] == "measured" for c in device["candidates"]), device
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
