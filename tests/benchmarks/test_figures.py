"""Documents with tables between marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import figures

PAGE = """Before.
<!-- figures: small -->
an old table
<!-- end of figures -->
Between.
<!-- figures: large -->
<!-- end of figures -->
After.
"""
WRITERS = {"small": lambda: "1\n", "large": lambda: "1000\n"}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setitem(figures.SECTIONS, "page.md", WRITERS)
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_each_mark_gets_its_own_table_and_the_rest_stays(page: Path) -> None:
    expected = PAGE.replace("an old table\n", "1\n").replace("large -->\n", "large -->\n1000\n")

    assert figures.written("page.md") == expected

    page.write_text(expected)
    assert figures.written("page.md") == expected


@pytest.mark.parametrize("wrong", [PAGE.replace("small", "smal"), PAGE.split("Between.")[0], PAGE + PAGE])
def test_marks_that_are_lost_or_doubled_are_named(page: Path, wrong: str) -> None:
    page.write_text(wrong)

    with pytest.raises(SystemExit, match=r"page\.md has marks .*should have \['large', 'small'\]"):
        figures.written("page.md")
