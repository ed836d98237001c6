"""Version 1 only grows: nothing that was released is renumbered, renamed, retyped or removed."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2 as d

# One file for each release: `make released` writes this version's. What stands there is a promise.
RELEASED = Path(__file__).parent / "released"
PROTOS = sorted((Path(__file__).parents[2] / "proto" / "v1").glob("*.proto"))


def current() -> d.FileDescriptorSet:
    files = d.FileDescriptorSet()
    for path in PROTOS:
        module = importlib.import_module(f"fleetfit.proto.v1.{path.stem}_pb2")
        module.DESCRIPTOR.CopyToProto(files.file.add())
    return files


def facts(files: d.FileDescriptorSet) -> dict[str, str]:
    """Every promise that a descriptor set makes: its place and what is promised there."""
    found: dict[str, str] = {}

    def enum(prefix: str, item: d.EnumDescriptorProto) -> None:
        for value in item.value:
            found[f"{prefix}.{item.name} value {value.number}"] = value.name

    def message(prefix: str, item: d.DescriptorProto) -> None:
        name = f"{prefix}.{item.name}"
        found[name] = "message"
        for field in item.field:
            oneof = item.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            found[f"{name} field {field.number}"] = f"{field.name} {field.label} {field.type} {field.type_name} {oneof}"
        for nested in item.nested_type:
            message(name, nested)
        for nested_enum in item.enum_type:
            enum(name, nested_enum)

    for file in files.file:
        for item in file.message_type:
            message(file.package, item)
        for item_enum in file.enum_type:
            enum(file.package, item_enum)
        for service in file.service:
            for method in service.method:
                found[f"{file.package}.{service.name}/{method.name}"] = (
                    f"{method.input_type} {method.client_streaming} {method.output_type} {method.server_streaming}"
                )
    return found


def breaks(old: d.FileDescriptorSet, new: d.FileDescriptorSet) -> list[str]:
    now = facts(new)
    return [
        f"{place}: {promise!r} became {now.get(place)!r}"
        for place, promise in facts(old).items()
        if now.get(place) != promise
    ]


@pytest.mark.parametrize("release", sorted(RELEASED.glob("*.binpb")), ids=lambda path: path.stem)
def test_nothing_released_is_broken(release: Path) -> None:
    assert breaks(d.FileDescriptorSet.FromString(release.read_bytes()), current()) == []


def test_there_is_a_release_to_compare_with() -> None:
    assert list(RELEASED.glob("*.binpb"))


def test_a_break_is_seen() -> None:
    old = current()
    for change in ("renumber", "rename", "retype", "remove", "method", "enum"):
        new = current()
        file = next(f for f in new.file if f.name.endswith("jobs.proto"))
        job = next(m for m in file.message_type if m.name == "JobSpec")
        if change == "renumber":
            job.field[1].number = 99
        elif change == "rename":
            job.field[1].name = "renamed"
        elif change == "retype":
            job.field[1].type = d.FieldDescriptorProto.TYPE_INT32
        elif change == "remove":
            del job.field[1]
        elif change == "method":
            file.service[0].method[0].output_type = ".fleetfit.v1.Job"
        else:
            file.enum_type[0].value[1].name = "OTHER"
        assert breaks(old, new), change


def test_growing_is_no_break() -> None:
    new = current()
    message = new.file[0].message_type[0]
    message.field.add(name="new_one", number=1000, type=d.FieldDescriptorProto.TYPE_STRING, label=1)
    assert breaks(current(), new) == []


def test_every_message_and_service_says_what_it_is() -> None:
    silent = []
    for path in PROTOS:
        lines = path.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            if re.match(r"(message|service|enum) ", line) and not before.startswith("//"):
                silent.append(f"{path.name}: {line}")
    assert silent == []


def test_quantities_carry_their_units() -> None:
    """A number of time, memory or size whose name has no unit is a misunderstanding to come."""
    bare = []
    for path in PROTOS:
        for line in path.read_text().splitlines():
            match = re.match(r"\s+(?:optional |repeated )?(?:int64|double|float|int32) (\w+) =", line)
            if match and re.search(r"(latency|duration|timeout|size|memory|temperature|frequency)$", match[1]):
                bare.append(f"{path.name}: {match[1]}")
    assert bare == []


def test_generated_code_is_what_the_compiler_makes(repository: Path, tmp_path: Path) -> None:
    compiler = repository / ".venv-proto" / "bin" / "python"
    if not compiler.exists():
        pytest.skip("the protocol compiler is not installed here; `make proto-tools` installs it")
    out = tmp_path / "out"
    out.mkdir()
    command = [str(compiler), "-m", "grpc_tools.protoc", "-I.", f"--python_out={out}", f"--grpc_python_out={out}"]
    command += [f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}"]
    command += [f"fleetfit/proto/v1/{path.name}" for path in PROTOS]
    environment = {"PATH": f"{compiler.parent}:{Path(shutil.which('env') or '/usr/bin/env').parent}"}
    subprocess.run(command, cwd=repository, env=environment, check=True)
    stale = [
        path.name
        for path in sorted((out / "fleetfit/proto/v1").iterdir())
        if path.read_bytes() != (repository / "proto" / "v1" / path.name).read_bytes()
    ]
    assert stale == [], "run `make proto` and commit what it writes"
