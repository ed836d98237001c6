"""The documents name only what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from benchmarks.figures import SECTIONS, written

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/decisions.md",
    "docs/devices/README.md",
    "docs/faults.md",
    "docs/architectures.md",
    "docs/measurement.md",
    "docs/jetson.md",
    "docs/recover-yourself.md",
    "docs/selfproof.md",
    *(
        f"docs/techniques/{name}.md"
        for name in ("README", "pruning", "low-rank", "quantization", "distillation", "export", "composition")
    ),
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_to_files_lead_somewhere(repository: Path, name: str) -> None:
    document = repository / name
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{name} links to {target}, which is not there"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_in_documents_are_there(repository: Path, name: str) -> None:
    roots = {p.name for p in repository.iterdir() if p.is_dir() and not p.name.startswith(".")}
    for path in re.findall(r"`([a-z_]+/[A-Za-z0-9_./]+)`", (repository / name).read_text()):
        # A part in capitals stands for many names.
        if path.split("/")[0] in roots and not re.search(r"/[A-Z]+\b", path):
            assert (repository / path).exists(), f"{name} speaks of {path}, which is not there"


def test_every_command_of_the_readme_exists(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    commands = set(project["entry-points"]["fleetfit.commands"])
    used = set(re.findall(r"^ +(?:[A-Z_]+=\S+ )*fleetfit ([a-z]+)", (repository / "README.md").read_text(), re.M))
    assert used, "the README shows no command"
    assert used <= commands


@pytest.mark.parametrize("name", SECTIONS)
def test_figures_are_those_measured(repository: Path, name: str) -> None:
    assert written(name) == (repository / name).read_text(), "run `python -m benchmarks.figures`"


def test_every_pass_has_a_page(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    index = (repository / "docs/techniques/README.md").read_text()
    for name in project["entry-points"]["fleetfit.passes"]:
        assert f"`{name}`" in index, f"docs/techniques/README.md does not name the pass {name}"


def test_every_fault_is_proven_by_a_test_that_is_there(repository: Path) -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (repository / "docs/faults.md").read_text())
    assert len(named) > 15
    for path, name in named:
        assert f"def {name}(" in (repository / path).read_text(), f"{path} has no {name}"
