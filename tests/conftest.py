"""Checks that hold for every test: nothing leaks, and on CI nothing is skipped that CI can run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

# How long an example takes is the machine's business, as everywhere here.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# One thread per numeric library: two-core machines run these tests, and results must not depend on the thread count.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Whoever imports OpenVINO first: it would report that to its makers, from a thread that outlives the test.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

_MAY_BE_SKIPPED = {"gpu", "jetson"}


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's own configuration and the host's real lock out of the tests."""
    folder = tmp_path_factory.mktemp("fleetfit")
    patch = pytest.MonkeyPatch()
    patch.setenv("FLEETFIT_CONFIG_DIR", str(folder / "config"))
    patch.setenv("FLEETFIT_HOST_LOCK", str(folder / "host.lock"))
    for name in ("FLEETFIT_SERVER", "FLEETFIT_TOKEN"):
        patch.delenv(name, raising=False)
    yield
    patch.undo()


def _open_files(process: psutil.Process) -> set[tuple[str, int]]:
    return {(file.path, file.fd) for file in process.open_files() if "pytest" in file.path or "/tmp/" in file.path}


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a child process, a non-daemon thread or an open temporary file behind."""
    process = psutil.Process()
    children = set(process.children(recursive=True))
    threads = set(threading.enumerate())
    files = _open_files(process)
    yield
    left = [c for c in set(process.children(recursive=True)) - children if c.is_running()]
    gone, alive = psutil.wait_procs(left, timeout=3)
    for child in alive:
        child.kill()
    assert not alive, f"child processes left running: {alive}"
    new_threads = [t for t in threading.enumerate() if t not in threads and not t.daemon]
    for thread in new_threads:
        thread.join(timeout=2)
    stuck = [t for t in new_threads if t.is_alive()]
    assert not stuck, f"threads left running: {stuck}"
    opened = _open_files(process) - files
    assert not opened, f"files left open: {opened}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """On CI a skipped test is a failed one, except where the hardware is missing."""
    report = yield
    if report.skipped and (os.environ.get("FLEETFIT_TEST_JETSON") or os.environ.get("FLEETFIT_TEST_STANDIN")):
        report.outcome = "failed"
        report.longrepr = f"skipped where it was to be proven: {report.longrepr}"
    elif report.skipped and os.environ.get("FLEETFIT_CI") and not hasattr(report, "wasxfail"):
        if not _MAY_BE_SKIPPED & {mark.name for mark in item.iter_markers()}:
            report.outcome = "failed"
            report.longrepr = f"skipped where CI installs all parts: {report.longrepr}"
    return report


# Modules that share a session's fixtures (a fleet, a standing server), and what takes longest: these run first.
_GROUPS = {
    "goods": (
        "test_health",
        "test_killed",
        "test_overlap",
        "test_recovered",
        "test_runtimes",
        "test_scorer",
        "test_stopping",
    ),
    "standin": ("test_standin",),
    "journey": ("test_journey",),
    "standing": ("test_bad_data", "test_bad_devices", "test_bad_identity", "test_bad_models", "test_bad_requests"),
    "wheel": ("test_wheel",),
    "install": ("test_install",),
}
_FLEETS = "tests/system/"
_GROUP_OF = {f"{_FLEETS}{module}.py": group for group, modules in _GROUPS.items() for module in modules}


def _group(nodeid: str) -> str:
    """The group of a test's module, or the module itself: what one process runs whole."""
    module = nodeid.split("::")[0]
    return _GROUP_OF.get(module, module)


def _turn(item: pytest.Item) -> int:
    """The longest first, so that no core waits at the end for another's: groups, other fleets, then all else."""
    group, order = _group(item.nodeid), [*_GROUPS]
    return order.index(group) if group in order else len(order) + (not group.startswith(_FLEETS))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what takes longest first."""
    items.sort(key=_turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep on one core what shares fixtures. By a scheduler of ours: with pytest 9.2, xdist 3.8's groups are no groups."""
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell each process of xdist whether it is to get whole groups."""
    node.workerinput["whole_groups"] = node.config.getoption("dist") == "loadgroup"


@pytest.fixture(scope="module", autouse=True)
def whole_group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fail where a group went to several processes: each makes its fixtures, which took minutes before somebody saw it."""
    process: dict[str, Any] = getattr(request.config, "workerinput", {})
    if process.get("whole_groups"):
        group = _group(request.node.nodeid)
        folder = tmp_path_factory.getbasetemp().parent / "groups" / group.replace("/", ".")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / process["workerid"]).touch()
        assert len(list(folder.iterdir())) == 1, f"{group} was dealt out to several processes"


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent
