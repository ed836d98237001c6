"""What devices get of fleetfit: every module that what they run can import, however late, and nothing of the rest."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetfit.core import package
from fleetfit.core.package import code_digest, device_files, package_files
from fleetfit.server.install.own_wheel import own_wheel
from fleetfit.server.install.shelf import read_wheel

FILES = device_files()
# Only asked for where it is there.
WITHOUT = {("fleetfit/client/commands/selfproof.py", "fleetfit.device_profiles.matching")}


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(name) for name in FILES if name.endswith(".py")}


def imported(name: str) -> Iterator[str]:
    """Full names of all that a file imports at run time, in functions too: of `from a import b` both a and a.b."""

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(FILES[name]))


def is_there(target: str) -> bool:
    # The last part may be a name in a module.
    return target in MODULES or target.rpartition(".")[0] in MODULES


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith(".py")))
def test_what_a_device_imports_of_ours_it_has(name: str) -> None:
    ours = {target for target in imported(name) if target.split(".")[0] == "fleetfit"}
    lacking = {target for target in ours if not is_there(target)}
    allowed = {target for file, target in WITHOUT if file == name}
    assert {target for target in lacking if not any(target.startswith(one) for one in allowed)} == set()
    assert bool(lacking) == bool(allowed)


def test_what_a_device_finds_by_name_it_has() -> None:
    named = {
        node.value
        for name, content in FILES.items()
        # The names of the SDK are there in vain.
        if name.endswith(".py") and name != "fleetfit/__init__.py"
        for node in ast.walk(ast.parse(content))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"fleetfit(\.[a-z]\w+){2,}(\.__main__)?", node.value)
    }
    assert {
        "fleetfit.agent.measuring",
        "fleetfit.agent.measuring.trials",
        "fleetfit.runtimes.tensorrt_builder",
    } <= named
    assert named <= MODULES


def test_packages_of_others_are_those_that_its_wheel_requires(tmp_path: Path) -> None:
    name, content = own_wheel()
    (tmp_path / name).write_bytes(content)
    required = read_wheel(tmp_path / name).requires
    always = {one.name for one in required if one.marker is None}
    roots = {target.split(".")[0] for name in FILES if name.endswith(".py") for target in imported(name)}
    # `google` is two packages, of which one brings grpc's statuses.
    names = {"grpc": "grpcio", "google": "protobuf"}
    others = {names.get(root, root) for root in roots - {"fleetfit"} if root not in sys.stdlib_module_names}
    with_runtimes = {one.name for one in required if one.marker is not None}
    assert with_runtimes == {"numpy", "onnxruntime", "ncnn", "openvino"}
    # What only a board's owner can install.
    assert others - with_runtimes - {"torch", "torch_tensorrt"} == always - {"googleapis-common-protos"}


def test_devices_get_nothing_of_server_and_compression() -> None:
    assert FILES.keys() < package_files().keys()
    components = {name.split("/")[1] for name in FILES if name.count("/") > 1}
    assert components == {"agent", "client", "core", "proto", "runtimes"}
    assert sum(map(len, FILES.values())) < 0.5 * sum(map(len, package_files().values()))


def test_the_codes_digest_is_of_what_devices_have(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = package_files()
    before = code_digest()
    monkeypatch.setattr(package, "package_files", lambda: FILES)
    assert code_digest() == before
    monkeypatch.setattr(package, "package_files", lambda: whole | {"fleetfit/server/new.py": b"1"})
    assert code_digest() == before
    monkeypatch.setattr(package, "package_files", lambda: whole | {"fleetfit/agent/new.py": b"1"})
    assert code_digest() != before
