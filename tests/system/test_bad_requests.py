"""What people type wrong: exit code 2 for what can never be meant, 1 for what is not there, and one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetfit.client.client import Client

from .conftest import Fleet
from .refusals import nothing_left, refused, refusing

pytestmark = pytest.mark.system
JOB = ("compress", "net", "--data", "data", "--on", "pi")


@pytest.fixture(autouse=True)
def client(standing: Fleet) -> Iterator[Client]:
    with nothing_left(standing) as client:
        yield client


USAGE = {
    "an unknown command": (("modles", "list"), r"no command 'modles'; did you mean 'fleetfit models'\?"),
    "an unknown subcommand": (("models", "lst"), r"no such command 'lst' \(did you mean 'list'\?\)"),
    "a misspelt option": ((*JOB, "--max-dorp", "1"), r"no such option: --max-dorp .*--max-drop"),
    "a missing argument": (("models", "push"), "missing argument 'MODEL'"),
    "no device": (("compress", "net", "--data", "data"), "no device is named; give a name, a label or 'all'"),
    "no dataset": (("compress", "net", "--on", "pi"), "no dataset is named; give --data NAME"),
    "no folder": (("pull", "last"), "no folder is named; give -o DIR"),
    "a loss that is none": ((*JOB, "--max-drop", "abc"), "'abc' is not a loss of the metric; write points such as 1"),
    "a limit that is no number": ((*JOB, "--p95-ms", "abc"), "invalid value for '--p95-ms'"),
    "a limit below nothing": ((*JOB, "--p95-ms", "-1"), "--p95-ms -1 is no limit; give a number above 0"),
    "an unknown objective": ((*JOB, "--minimize", "joy"), "'joy' cannot be minimized; choose one of latency"),
    "a budget that is no time": ((*JOB, "--budget", "soon"), "'soon' is not a length of time; write for example"),
    "a report of no format": (("report", "last", "--format", "pdf"), "no format 'pdf'; choose one of table"),
    "a server at no address": (("server", "--listen", "here"), "'here' is not an address; write HOST:PORT"),
    "a wait that is no time": (("server", "--device-wait", "long"), "'long' is not a length of time; write for"),
    "an agent without a token": (
        ("agent", "--state", "nobody"),
        "not enrolled yet .* are missing; run `fleetfit devices",
    ),
    "threads that are no number": (("agent", "--threads", "x"), "invalid value for '--threads'"),
}


@pytest.mark.parametrize("what", USAGE)
def test_wrong_usage_ends_with_2(what: str, standing: Fleet) -> None:
    arguments, says = USAGE[what]
    refused(standing, *arguments, error="USAGE", says=says, exit_code=2)


def test_a_misspelt_json_option_is_wrong_usage_too(standing: Fleet) -> None:
    said = standing.run("models", "list", "--jsn", code=2)
    assert said.out == "" and said.err.startswith("fleetfit: no such option: --jsn")


FILES = {
    "a model that is not there": (("models", "push", "gone.pt2"), "INVALID_INPUT", "no file 'gone.pt2'; check the path"),
    "a folder for a model": (("models", "push", "."), "INVALID_MODEL", r"'\.' is no model; give a \.pt2 file"),
    "a folder named as one": (("models", "push", "folder.pt2"), "INVALID_INPUT", "'folder.pt2' is not a file; check"),
    "a factory of no module": (("models", "check", "gone:make"), "NOT_FOUND", "no module 'gone' .*; start the command"),
    "data that are not there": (("data", "push", "gone.npz"), "INVALID_INPUT", "no file 'gone.npz'; check the path"),
    "a folder without arrays": (("data", "push", "folder.pt2"), "INVALID_DATA", r"holds no \.npy files; save each input"),
    "a recipe that is not there": ((*JOB, "--recipe", "gone.yaml"), "INVALID_INPUT", "gone.yaml cannot be read .*; check"),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_not_there(what: str, standing: Fleet, tmp_path: Path) -> None:
    (tmp_path / "folder.pt2").mkdir()
    arguments, error, says = FILES[what]
    refused(standing, *arguments, error=error, says=says, cwd=tmp_path)


RECIPES = {
    "pass": "names the unknown pass 'shrink'; there are activation_pruning, distill",
    "key": r"activation_pruning has no parameter 'ratoi'; did you mean 'ratio'\?",
    "value": "activation_pruning: 'ratio': Input should be less than 1, not 7",
    "text": "is not YAML in line 2; a recipe reads like",
    "top": "has the unknown key 'step'; a recipe has 'name' and 'steps'",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_with_something_unknown_in_it(name: str, standing: Fleet, files: Path, client: Client) -> None:
    path = files / f"{name}.yaml"
    refused(standing, *JOB, "--recipe", str(path), error="INVALID_RECIPE", says=RECIPES[name])
    with refusing("INVALID_ARGUMENT", RECIPES[name]):
        client.compress("net", data="data", on=["pi"], recipes=[path])


NAMES = {
    "device": (("compress", "net", "--data", "data", "--on", "pie"), r"no device or label 'pie'; did you mean 'pi'\?"),
    "device to show": (("devices", "show", "zero"), "no device 'zero'; `fleetfit devices list` shows"),
    "model": (("bench", "nat", "--on", "pi"), r"no model 'nat'; did you mean 'net'\?"),
    "dataset": (("compress", "net", "--data", "dota", "--on", "pi"), r"no dataset 'dota'; did you mean 'data'\?"),
    "recipe": ((*JOB, "--recipe", "smalest"), "no recipe 'smalest', and no file of that name; "),
    "report": (("report", "zzzzzz"), "no job 'zzzzzz'; `fleetfit jobs list` shows them"),
    "build": (("pull", "zzzzzz", "-o", "out"), "no job 'zzzzzz'; `fleetfit jobs list` shows them"),
    "job": (("jobs", "cancel", "zzzzzz"), "no job 'zzzzzz'; `fleetfit jobs list` shows them"),
}


@pytest.mark.parametrize("what", NAMES)
def test_names_that_there_are_not(what: str, standing: Fleet) -> None:
    arguments, says = NAMES[what]
    refused(standing, *arguments, error="NOT_FOUND", says=says)


def test_the_statuses_of_names_that_there_are_not(client: Client) -> None:
    for call in (
        lambda: client.bench("net", on=["po"]),
        lambda: client.bench("nat", on=["pi"]),
        lambda: client.compress("net", data="dota", on=["pi"]),
        lambda: client.compress("net", data="data", on=["pi"], recipes=["smalest"]),
        lambda: client.report("zzzzzz"),
        lambda: client.job("zzzzzz"),
        lambda: client.cancel("zzzzzz"),
        lambda: client.device("zero"),
    ):
        with refusing("NOT_FOUND", "^there is no "):
            call()


def test_a_metric_that_does_not_fit(standing: Fleet, client: Client) -> None:
    says = "no metric 'speed'; choose one of accuracy"
    refused(standing, *JOB, "--metric", "speed", error="INVALID_INPUT", says=says)
    with refusing("INVALID_ARGUMENT", says):
        client.compress("net", data="data", on=["pi"], metric="speed")


def test_more_threads_than_the_device_has(standing: Fleet, client: Client) -> None:
    says = "usable cores, so it cannot be measured with 999 threads"
    refused(standing, *JOB, "--threads", "999", error="INVALID_INPUT", says=says)
    with refusing("INVALID_ARGUMENT", says):
        client.bench("net", on=["pi"], threads=[999])
