"""`fleetfit recipes`, which asks no server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fleetfit import cli
from fleetfit.compress.recipe import Recipe, default_recipes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_ours_are_listed_and_shown_as_files_that_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert [one["name"] for one in listed] == list(default_recipes())
    assert cli.run(["recipes", "show", "pruned"]) == 0
    Path("mine.yaml").write_text(capsys.readouterr().out)
    assert Recipe.from_yaml(Path("mine.yaml").read_text()) == default_recipes()["pruned"]
    assert cli.run(["recipes", "list"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_remarks_come_with_the_number_of_their_step(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("name: mine\nsteps:\n  - low_rank: {energy: 0.9}\n")
    assert cli.run(["recipes", "check", "mine.yaml"]) == 0
    assert "step 1, low_rank: no later step recovers" in capsys.readouterr().out
    assert cli.run(["recipes", "check", "mine.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["remarks"][0]["step"] == 1 and found["remarks"][0]["pass"] == "low_rank"


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["check", "prund"], "did you mean 'pruned'?", 1),
        (["check", "wrong.yaml"], "names the unknown pass 'quantise'; did you mean 'quantize'?", 1),
        (["show", "nothing.yaml"], "nothing.yaml", 1),
        (["check"], "missing argument", 2),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(
    arguments: list[str], words: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wrong.yaml").write_text("name: a\nsteps: [quantise]\n")
    assert cli.run(["recipes", *arguments]) == code
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_the_schema_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "schema", "-o", "recipe.json"]) == 0
    assert json.loads(Path("recipe.json").read_text())["title"] == "A fleetfit recipe"
    assert "recipe.json" in capsys.readouterr().out
    assert cli.run(["recipes", "schema", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
