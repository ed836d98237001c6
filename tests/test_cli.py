from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

from fleetfit import cli
from fleetfit.core.errors import NotFound

Install = Callable[[str, object], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Registers an object as a subcommand, as a third party's package would."""
    entries: list[EntryPoint] = []
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)

    def add(name: str, command: object) -> None:
        module = types.ModuleType(f"third_party_{name}")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        entries.append(EntryPoint(name, f"{module.__name__}:command", cli.GROUP))

    return add


def test_help_is_quick_and_imports_no_command() -> None:
    code = "import sys, fleetfit.cli as c; c.run(['--help']); print(sorted({'typer','rich','grpc','torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_installed_command_within_80_columns(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for name in project["entry-points"][cli.GROUP]:
        assert f"\n  {name} " in text
        assert name in cli._SUMMARIES, f"{name} has no summary"
    assert max(map(len, text.splitlines())) <= 80


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    assert "Usage:" in capsys.readouterr().out


@pytest.mark.parametrize(("typed", "meant"), [("comress", "compress"), ("device", "devices"), ("job", "jobs")])
def test_an_unknown_command_gets_the_nearest(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([typed]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"fleetfit: there is no command '{typed}'; did you mean 'fleetfit {meant}'?\n"


def test_a_command_that_devices_are_not_given_is_said_to_be_elsewhere(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("agent", typer.Typer())
    assert cli.run(["server", "--json"]) == 1
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["code"] == "UNSUPPORTED_HERE" and captured.err == f"fleetfit: {error['message']}\n"
    assert error["message"].startswith("the command 'server' is not part of what a device is given; use it where")
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("\nThis is what a device is given; all other commands are where the server is.\n")
    assert max(map(len, text.splitlines())) <= 80


def test_an_unknown_command_far_from_all_points_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["qqqq"]) == 2
    assert "--help" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fleetfit ")
    assert cli.run(["--version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"]


def test_our_error_is_one_sentence_and_exit_code_1(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(as_json: bool = typer.Option(False, "--json")) -> None:
        raise NotFound("there is no such thing; make one", field="thing", private="a secret")

    install("fails", fails)
    assert cli.run(["fails"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "fleetfit: there is no such thing; make one\n")
    assert cli.run(["fails", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {"code": "NOT_FOUND", "message": "there is no such thing; make one", "field": "thing"}
    }
    assert "secret" not in captured.err


def test_a_bug_shows_no_traceback_unless_asked(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy() -> None:
        {}["key"]  # type: ignore[index]

    install("buggy", buggy)
    monkeypatch.delenv("FLEETFIT_DEBUG", raising=False)
    assert cli.run(["buggy"]) == 1
    text = capsys.readouterr().err
    assert "Traceback" not in text and "KeyError" in text and text.count("\n") == 1
    monkeypatch.setenv("FLEETFIT_DEBUG", "1")
    assert cli.run(["buggy"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    install("stop", interrupted)
    assert cli.run(["stop"]) == 130
    assert capsys.readouterr().err.strip().endswith("fleetfit: interrupted")


def test_exit_codes_of_commands_are_kept(install: Install) -> None:
    def leaves(code: int) -> None:
        raise typer.Exit(code)

    install("leaves", leaves)
    assert [cli.run(["leaves", str(code)]) for code in (0, 1, 3)] == [0, 1, 3]


def test_wrong_usage_of_a_command_is_exit_code_2_and_json_where_asked(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def wants(number: int) -> None: ...

    install("wants", wants)
    assert cli.run(["wants", "--json", "x"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "USAGE"
    assert "fleetfit wants --help" in captured.err


def test_a_command_that_cannot_be_imported_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = EntryPoint("server", "there_is_no_such_module:command", cli.GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda group: [entry])
    assert cli.run(["server"]) == 1
    text = capsys.readouterr().err
    assert "there_is_no_such_module" in text and 'pip install "fleetfit[server]"' in text


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys, fleetfit.cli as c\nfor _ in range(3000): c.run(['--help'])\nc.main(['--help'])"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 0
    assert errors == ""


def test_the_command_and_the_module_are_one() -> None:
    environment = os.environ | {"COLUMNS": "80"}
    both = [
        subprocess.run([*start, "--version"], capture_output=True, text=True, env=environment, check=True).stdout
        for start in ([sys.executable, "-m", "fleetfit"], [str(Path(sys.executable).with_name("fleetfit"))])
    ]
    assert both[0] == both[1]
