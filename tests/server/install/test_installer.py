from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

import fleetfit
from fleetfit.core.errors import InvalidInput, NotFound
from fleetfit.core.package import device_files
from fleetfit.proto.v1 import snapshot_pb2
from fleetfit.server.install import fetching
from fleetfit.server.install.installer import ON_DEVICE, PLACE, Installers, place_own_wheel, take_stock
from fleetfit.server.install.own_wheel import own_wheel
from fleetfit.server.install.serving import make_app
from fleetfit.server.install.shelf import RUNTIMES, Shelf, Target, read_wheel

from ...proto.proofs import proof
from .invented import wheel
from .repacked import repack

HERE = Target((sys.version_info[0], sys.version_info[1]), "x86_64")


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels with all that an agent needs on this Python."""
    folder = tmp_path_factory.mktemp("wheels")
    repack(folder, ["fleetfit", "pip"])
    return folder


@pytest.fixture
def shelf(stocked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stocked, tmp_path / "wheels", copy_function=os.link))


def test_our_own_wheel_is_for_devices_and_the_same_every_time(tmp_path: Path) -> None:
    name, content = own_wheel()
    assert own_wheel() == (name, content)
    path = tmp_path / name
    path.write_bytes(content)
    found = read_wheel(path)
    # The same version for pip, and another name for people.
    assert (found.name, found.version.public, found.version.local) == ("fleetfit", fleetfit.__version__, "device")
    assert any(requirement.name == "grpcio" for requirement in found.requires)
    assert not {"torch", "sqlalchemy", "pyyaml", "pytest"} & {requirement.name for requirement in found.requires}
    with zipfile.ZipFile(path) as archive:
        files = set(archive.namelist())
        info = f"{name.removesuffix('-py3-none-any.whl')}.dist-info"
        record = {line.split(",")[0] for line in archive.read(f"{info}/RECORD").decode().splitlines()}
        entries = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
    assert record == files and f"{info}/licenses/LICENSE" in files
    assert {one for one in files if not one.startswith(info)} == device_files().keys()
    assert not any("__pycache__" in file or file.endswith(".pyc") for file in files)
    groups = dict(re.findall(r"^\[(.+)\]\n((?:[^\[\n].*\n)*)", entries, re.M))
    assert groups.keys() == {"console_scripts", "fleetfit.commands", "fleetfit.meters", "fleetfit.runtimes"}
    commands = groups["fleetfit.commands"].splitlines()
    assert [line.partition(" = ")[0] for line in commands] == ["agent", "selfproof"]
    assert len(groups["fleetfit.runtimes"].splitlines()) == len(entry_points(group="fleetfit.runtimes"))
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.M)) == set(RUNTIMES)
    assert f"\nVersion: {found.version}\n" in metadata and "Description" not in metadata


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python with the wheel, unpacked, as all that there is of ours."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(io.BytesIO(own_wheel()[1])) as archive:
        archive.extractall(site)
    others = Path(grpc.__file__).parent.parent

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": f"{site}:{others}", "PYTHONDONTWRITEBYTECODE": "1"} | more
        # -S: a checkout that is installed as such finds its modules in spite of any path.
        command = [sys.executable, "-S", *arguments]
        done = subprocess.run(
            command,
            env=environment,
            cwd=site.parent,
            capture_output=True,
            timeout=100,
            encoding="utf-8",
            errors="replace",
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def test_every_module_of_it_can_be_imported(device: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    files = [name.removesuffix(".py") for name in device_files() if name.endswith(".py")]
    wanted = sorted(name.removesuffix("/__init__").replace("/", ".") for name in files)
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    there = {name for name in device("-c", code, *wanted).stdout.split() if name.partition(".")[0] == "fleetfit"}
    assert there == set(wanted)


def test_a_device_has_its_own_commands_and_says_where_the_others_are(
    device: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    text = device("-m", "fleetfit", "--help").stdout
    assert re.findall(r"^  (\w+)  ", text, re.M) == ["agent", "selfproof"] and "where the server is" in text
    refused = device("-m", "fleetfit", "server", "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["message"].startswith(
        "the command 'server' is not part of what a device"
    )
    asked = ["-m", "fleetfit", "agent", "--state", str(tmp_path), "doctor", "--json"]
    verdicts = {(one["what"], one["verdict"]) for one in json.loads(device(*asked).stdout)["findings"]}
    assert {("identity", "missing"), ("runtime", "ok")} <= verdicts
    (tmp_path / "sent.zip").write_bytes(proof(snapshot_pb2.DeviceSnapshot(machine="aarch64")))
    looked = device("-m", "fleetfit", "selfproof", "--verify", str(tmp_path / "sent.zip"))
    assert looked.stdout.startswith("aarch64\nprofile not looked for: ") and looked.returncode == 0


def test_what_runs_on_a_device_is_compiled_and_nothing_else(
    device: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    more = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}

    def compiled() -> set[str]:
        return {str(path).rpartition("/fleetfit/")[2].partition(".")[0] for path in tmp_path.rglob("fleetfit/**/*.pyc")}

    assert device("-m", "fleetfit.agent.precompile", **more).returncode == 0
    before, all_before = compiled(), set(tmp_path.rglob("*.pyc"))
    assert {"agent/__main__", "agent/session", "agent/probe/snapshot", "agent/measuring/trials"} <= before
    assert {"runtimes/onnxruntime", "proto/v1/measurement_pb2", "core/statistics"} <= before
    assert not {"agent/doctor", "agent/selfproof/making", "proto/v1/jobs_pb2"} & before
    assert any("/onnxruntime/" in str(path) for path in all_before)
    # What it was made for compiles nothing more.
    code = (
        "import fleetfit.agent.__main__, fleetfit.agent.measuring.__main__, fleetfit.agent.probe.snapshot, numpy.random"
    )
    device("-c", code, **more)
    assert set(tmp_path.rglob("*.pyc")) == all_before


def test_an_empty_shelf_has_no_installer_and_is_left_empty(tmp_path: Path) -> None:
    assert asyncio.run(Installers(tmp_path / "wheels").current()) is None
    assert not (tmp_path / "wheels").exists()


def test_a_shelf_that_lacks_something_has_no_installer_and_says_what(shelf: Path) -> None:
    next(shelf.glob("grpcio-*")).unlink()
    assert asyncio.run(Installers(shelf).current()) is None
    lacking = take_stock(Shelf(shelf), HERE).lacking
    assert [text.split(">")[0] for text in lacking["agent"]] == ["grpcio"]


def test_the_installer_names_every_wheel_by_its_digest(shelf: Path) -> None:
    made = asyncio.run(Installers(shelf).current())
    assert made is not None and made.targets == (str(HERE),)
    assert hashlib.sha256(made.content).hexdigest() == made.sha256
    found: dict[str, Any] = {"__name__": "installer"}
    exec(compile(made.content, "installer", "exec"), found)
    assert sorted(found["MANIFEST"]["targets"][str(HERE)]["agent"]) == sorted(made.wheels)
    for name, (size, digest, unpacked) in found["MANIFEST"]["files"].items():
        content = (shelf / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest) and unpacked > 0


def test_the_installer_is_another_when_the_shelf_is(shelf: Path) -> None:
    installers = Installers(shelf)

    async def scenario() -> None:
        first = await installers.current()
        assert first is not None and await installers.current() is first
        wheel(shelf, "pip-99-py3-none-any.whl")
        second = await installers.current()
        assert second is not None and second.sha256 != first.sha256
        assert await installers.wheel("pip-99-py3-none-any.whl") == shelf / "pip-99-py3-none-any.whl"

    asyncio.run(scenario())


def test_agents_get_the_servers_own_version(shelf: Path) -> None:
    wheel(shelf, "fleetfit-99-py3-none-any.whl")
    place_own_wheel(Shelf(shelf))
    assert [path.name for path in shelf.glob("fleetfit-*")] == [own_wheel()[0]]


def test_the_manifest_has_its_place_in_the_script() -> None:
    assert ON_DEVICE.read_text().count(PLACE) == 1


def browse(folder: Path, scenario: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        transport = httpx.ASGITransport(make_app(Installers(folder)))
        async with httpx.AsyncClient(transport=transport, base_url="http://server:7603") as client:
            return await scenario(client)

    return asyncio.run(run())


def test_installer_and_wheels_are_served_and_nothing_else(shelf: Path) -> None:
    (shelf / "secret.txt").write_text("no")

    async def scenario(client: httpx.AsyncClient) -> None:
        installer = await client.get("/")
        name = next(path.name for path in shelf.glob("psutil-*.whl"))
        content = (shelf / name).read_bytes()
        assert name in installer.text and (await client.get(f"/wheels/{name}")).content == content
        rest = await client.get(f"/wheels/{name}", headers={"Range": "bytes=1000-"})
        assert rest.status_code == 206 and rest.content == content[1000:]
        for path in ("/wheels/secret.txt", "/wheels/..%2Fpki%2Fca.key.pem", "/wheels/", "/pki", "/wheels/x.whl"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post("/")).status_code == 405

    browse(shelf, scenario)


def test_without_wheels_it_says_what_to_do(tmp_path: Path) -> None:
    answer = browse(tmp_path, lambda client: client.get("/"))
    assert answer.status_code == 404 and "fleetfit server wheels fetch" in answer.text
    with pytest.raises(NotFound):
        asyncio.run(Installers(tmp_path).wheel("x"))


def test_files_that_are_no_wheels_are_not_added(tmp_path: Path) -> None:
    good = wheel(tmp_path, "a-1-py3-none-any.whl")
    (tmp_path / "b-1-py3-none-any.whl").write_bytes(b"?")
    shelf = Shelf(tmp_path / "wheels")
    with pytest.raises(InvalidInput, match="b-1-py3"):
        fetching.add(shelf, [good, tmp_path / "b-1-py3-none-any.whl"])
    assert shelf.listing() == ()
    fetching.add(shelf, [good])
    assert [key[0] for key in shelf.listing()] == [good.name]


def test_what_an_index_has_is_fetched_for_a_target_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real pip, from a folder in place of an index."""
    index = tmp_path / "index"
    target = Target((3, 12), "aarch64")
    requires = [r for r in read_wheel(_own(tmp_path)).requires if r.marker is None]
    for requirement in requires:
        version = {"protobuf": "7", "cryptography": "50", "typer": "0.20", "grpcio": "1.80"}.get(
            requirement.name, "3000"
        )
        platform = "cp312-cp312-manylinux_2_17_aarch64" if requirement.name == "grpcio" else "py3-none-any"
        # The running Python would leave this one out.
        more = ['extra-one; platform_machine == "aarch64"'] if requirement.name == "grpcio" else []
        wheel(index, f"{requirement.name.replace('-', '_')}-{version}-{platform}.whl", *more)
    for name in ("pip", "extra_one"):
        wheel(index, f"{name}-1-py3-none-any.whl")
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(index)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    said: list[str] = []
    (stock,) = fetching.fetch(Shelf(tmp_path / "wheels"), [target], [], said.append)
    assert stock.complete and "extra-one" in {one.name for one in stock.agent}
    assert said[-1].startswith("cp312-aarch64: ")
    # A second time nothing is asked of pip.
    monkeypatch.setattr(fetching, "_download", None)
    fetching.fetch(Shelf(tmp_path / "wheels"), [target], [], said.append)


def test_what_cannot_be_fetched_is_said_in_pips_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        Exception, match="pip cannot fetch what cp310-x86_64 needs .*No matching distribution.*wheels add"
    ):
        fetching.fetch(Shelf(tmp_path / "wheels"), [Target((3, 10), "x86_64")], [], lambda text: None)


def _own(folder: Path) -> Path:
    name, content = own_wheel()
    (folder / name).write_bytes(content)
    return folder / name
