"""Models that cannot be accepted: each is refused with one sentence that says what to do, and nothing is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetfit.client.client import Client

from .conftest import Fleet
from .refusals import nothing_left, refused, refusing

pytestmark = pytest.mark.system
AGAIN = r"make it again with fleetfit\.export"
NEWER = (
    r"run `pip install --upgrade \"fleetfit\[server\]\"` where the server is, or export it again with an older torch"
)

ARCHIVES = {
    "cut": f"damaged or was cut off.*{AGAIN}",
    "bomb": f"zip bomb.*{AGAIN}",
    "pickle": f"holds 'data.pkl', which has no place.*{AGAIN}",
    "samples": f"not plain tensors, which could run code.*{AGAIN}",
    "newer": f"exported by torch 9.9.0 in format 99, which is newer.*{NEWER}",
    "layout": f"archive version '9', which is newer.*{NEWER}",
}


@pytest.fixture(autouse=True)
def client(standing: Fleet) -> Iterator[Client]:
    with nothing_left(standing) as client:
        yield client


@pytest.mark.parametrize("command", ["check", "push"])
def test_what_stops_an_export_is_named_with_its_line_and_the_usual_cure(
    command: str, standing: Fleet, files: Path
) -> None:
    says = r"stops at branchy\.py:6 \(if features\.sum\(\) > 0:\), where it decides on a tensor's values; replace .*torch\.where"
    refused(standing, "models", command, "branchy:make", error="INVALID_MODEL", says=says, cwd=files)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_or_unreadable_archive_is_refused(name: str, standing: Fleet, files: Path, client: Client) -> None:
    path = files / f"{name}.pt2"
    refused(standing, "models", "push", str(path), error="INVALID_MODEL", says=ARCHIVES[name])
    assert not (files / "ran").exists(), "a pickle was loaded"
    # What was refused cannot be used, and whoever tries hears why.
    says = f"the model '{name}' was refused: .*"
    with refusing("INVALID_ARGUMENT", says):
        client.bench(name, on=["pi"])


def test_the_interface_for_python_carries_the_same_sentence(files: Path, client: Client) -> None:
    with refusing("INVALID_ARGUMENT", ARCHIVES["cut"]):
        client.push_model(files / "cut.pt2")


@pytest.mark.parametrize("name", ["cut", "bomb", "pickle", "newer"])
def test_the_check_on_this_machine_finds_it_too(name: str, standing: Fleet, files: Path) -> None:
    path = str(files / f"{name}.pt2")
    refused(standing, "models", "check", path, error="INVALID_MODEL", says=ARCHIVES[name])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("foreign", "the operator 'Fancy' of 'my.own', which ONNX Runtime does not have; export it again"),
        ("unknown", "does not run in ONNX Runtime .*Fancy.*; export it again"),
    ],
)
def test_an_onnx_file_that_the_runtime_cannot_load_is_refused(
    name: str, says: str, standing: Fleet, files: Path, client: Client
) -> None:
    refused(standing, "models", "push", str(files / f"{name}.onnx"), error="INVALID_MODEL", says=says)
    with refusing("INVALID_ARGUMENT", says):
        client.push_model(files / f"{name}.onnx")


def test_lists_show_what_was_refused_as_refused(standing: Fleet, files: Path) -> None:
    refused(standing, "models", "push", str(files / "foreign.onnx"), error="INVALID_MODEL", says="Fancy")
    listed = standing.run("models", "list", "--json").json["models"]
    states = {one["name"]: one["state"] for one in listed}
    assert states["net"] == "accepted" and set(states.values()) == {"accepted", "refused"}
    assert "refused" in standing.run("models", "list").out
    shown = standing.run("models", "show", "foreign").out
    assert "refused" in shown and "Fancy" in shown
    refused(
        standing,
        *("compress", "foreign", "--data", "data", "--on", "pi"),
        error="INVALID_INPUT",
        says="the model 'foreign' was refused: The ONNX file uses the operator",
    )
