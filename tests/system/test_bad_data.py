"""Data that do not fit: each is refused with one sentence that says what to do, and nothing is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetfit.client.client import Client

from .conftest import Fleet
from .refusals import nothing_left, refused, refusing

pytestmark = pytest.mark.system

DATA = {
    "shape": r"'features' of the shape \(120, 8\) where the model takes \(samples, 16\); reshape or transpose",
    "dtype": r"'features' as float64 where the model takes float32; save features.astype\('float32'\)",
    "classes": r"the class index 6 where the model has 4 classes \(0 to 3\); check the labels",
    "nan": "NaN or infinity in 'features', first in sample 3; remove or fill such samples",
    "empty": r"an empty array 'features' \(shape \(0, 16\)\); give at least 10 samples",
    "objects": "holds Python objects in 'targets', which are never unpickled; convert it to numbers",
    "uneven": r"differ in length \(features: 120, targets: 119\); give one row per sample",
    "renamed": r"lacks the array 'features' that the model takes \(it holds: pixels\); name the arrays as",
}


@pytest.fixture(scope="module")
def narrow(standing: Fleet, files: Path) -> None:
    """Good data, but not for `net`."""
    standing.run("data", "push", str(files / "shape.npz"), "--name", "narrow")


@pytest.fixture(autouse=True)
def client(standing: Fleet, narrow: None) -> Iterator[Client]:
    with nothing_left(standing) as client:
        yield client


@pytest.mark.parametrize("name", DATA)
def test_data_that_do_not_fit_the_model_are_refused(name: str, standing: Fleet, files: Path, client: Client) -> None:
    path = files / f"{name}.npz"
    refused(standing, "data", "push", str(path), "--model", "net", error="INVALID_DATA", says=DATA[name])
    with refusing("INVALID_ARGUMENT", DATA[name]):
        client.push_dataset(path, model="net")
    with refusing("INVALID_ARGUMENT", f"the dataset '{name}' was refused: .*{DATA[name]}"):
        client.bench("net", data=name, on=["pi"])


@pytest.mark.parametrize("name", ["half", "words"])
def test_what_is_no_npz_is_not_even_sent(name: str, standing: Fleet, files: Path) -> None:
    says = r"is not an \.npz; save the arrays with numpy\.savez"
    refused(standing, "data", "push", str(files / f"{name}.npz"), error="INVALID_DATA", says=says)


def test_a_test_split_of_another_shape_is_refused(standing: Fleet, files: Path) -> None:
    refused(
        standing,
        *("data", "push", str(files / "data.npz"), "--name", "own", "--test", str(files / "shape.npz")),
        error="INVALID_DATA",
        says="The test file has 'features' .* and the data file .*; save both the same way",
    )


def test_data_of_another_model_are_found_before_a_job_begins(standing: Fleet, client: Client) -> None:
    """Pushed without a model they are good data; only with this model they are not."""
    refused(
        standing,
        *("compress", "net", "--data", "narrow", "--on", "pi"),
        error="INVALID_DATA",
        says=r"'features' of narrow has the shape \[-1, 8\], but net takes \[-1, 16\]; push data of that shape",
    )
    with refusing("INVALID_ARGUMENT"):
        client.compress("net", data="narrow", on=["pi"])


def test_lists_show_what_was_refused_as_refused(standing: Fleet, files: Path) -> None:
    says = "differ in length"
    refused(standing, "data", "push", str(files / "uneven.npz"), "--model", "net", error="INVALID_DATA", says=says)
    listed = standing.run("data", "list", "--json").json["datasets"]
    states = {one["name"]: one["state"] for one in listed}
    assert states["data"] == "accepted" and states["uneven"] == "refused"
    assert "refused" in standing.run("data", "list").out
    assert says in " ".join(standing.run("data", "show", "uneven").out.split())
