from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

from fleetfit.core.errors import InvalidInput
from fleetfit.server.install.shelf import MACHINES, PYTHONS, Shelf, Target, read_wheel

from .invented import wheel

PI = Target((3, 11), "aarch64")
PC = Target((3, 13), "x86_64")


def names(shelf: Shelf, target: Target, *requirements: str) -> tuple[list[str], list[str]]:
    """What was chosen, and what is lacking."""
    needed = shelf.needed(target, [Requirement(text) for text in requirements])
    return [f"{one.name} {one.version}" for one in needed.wheels], list(needed.lacking)


@pytest.mark.parametrize(
    ("file_name", "fits"),
    [
        ("a-1-py3-none-any.whl", "both"),
        ("a-1-py2.py3-none-any.whl", "both"),
        ("a-1-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", "pi"),
        ("a-1-cp38-abi3-manylinux_2_28_aarch64.whl", "pi"),
        ("a-1-cp311-none-manylinux_2_28_aarch64.whl", "pi"),
        ("a-1-cp312-abi3-manylinux_2_28_aarch64.whl", "neither"),
        ("a-1-cp313-cp313-manylinux1_x86_64.whl", "pc"),
        ("a-1-cp313-cp313t-manylinux1_x86_64.whl", "neither"),
        # A C library newer than that of the oldest system, and another C library.
        ("a-1-cp311-cp311-manylinux_2_39_aarch64.whl", "neither"),
        ("a-1-cp311-cp311-musllinux_1_2_aarch64.whl", "neither"),
        ("a-1-cp311-cp311-linux_armv7l.whl", "neither"),
    ],
)
def test_a_wheel_fits_by_its_tags(tmp_path: Path, file_name: str, fits: str) -> None:
    found = read_wheel(wheel(tmp_path, file_name))
    assert [found.fits(PI), found.fits(PC)] == [fits in ("pi", "both"), fits in ("pc", "both")]


def test_a_wheel_fits_by_the_python_that_it_asks_for(tmp_path: Path) -> None:
    found = read_wheel(wheel(tmp_path, "a-1-py3-none-any.whl", python_requires=">=3.12"))
    assert not found.fits(PI) and found.fits(PC)


def test_the_newest_that_fits_and_all_that_it_requires(tmp_path: Path) -> None:
    wheel(tmp_path, "a-1.9-py3-none-any.whl")
    wheel(tmp_path, "a-1.10-py3-none-any.whl", "b>=2", 'c; python_version < "3.12"', 'd; extra == "more"')
    wheel(tmp_path, "a-2-py3-none-any.whl", python_requires=">=3.14")
    wheel(tmp_path, "b-2-cp313-cp313-manylinux_2_17_x86_64.whl")
    wheel(tmp_path, "b-2.1-cp311-cp311-manylinux_2_17_aarch64.whl")
    shelf = Shelf(tmp_path)
    assert names(shelf, PC, "a") == (["a 1.10", "b 2"], [])
    assert names(shelf, PI, "A") == (["a 1.10", "b 2.1"], ["c"])
    assert names(shelf, PC, "a[more]") == (["a 1.10", "b 2"], ["d"])
    assert names(shelf, PC, "a<1.10") == (["a 1.9"], [])


def test_what_is_asked_for_late_changes_an_early_choice(tmp_path: Path) -> None:
    wheel(tmp_path, "a-1-py3-none-any.whl", "c", "b")
    wheel(tmp_path, "b-1-py3-none-any.whl", "c<2")
    wheel(tmp_path, "c-1-py3-none-any.whl")
    wheel(tmp_path, "c-2-py3-none-any.whl", "nowhere")
    assert names(Shelf(tmp_path), PI, "a") == (["a 1", "b 1", "c 1"], [])


def test_wheels_that_require_each_other_come_to_an_end(tmp_path: Path) -> None:
    wheel(tmp_path, "a-1-py3-none-any.whl", "b[x]")
    wheel(tmp_path, "b-1-py3-none-any.whl", 'a; extra == "x"')
    assert names(Shelf(tmp_path), PI, "a") == (["a 1", "b 1"], [])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_complete_choice_meets_every_requirement(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shelf")
    for name in "abcd":
        for version in data.draw(st.sets(st.integers(1, 3))):
            asked = data.draw(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(("", "<3", ">1", "==2")))))
            wheel(folder, f"{name}-{version}-py3-none-any.whl", *(f"{one}{spec}" for one, spec in asked))
    needed = Shelf(folder).needed(PI, [Requirement("a")])
    chosen = {one.name: one for one in needed.wheels}
    if needed.complete:
        assert "a" in chosen
        for requirement in (r for one in needed.wheels for r in one.requires):
            assert requirement.specifier.contains(chosen[requirement.name].version)


@pytest.mark.parametrize("content", [b"", b"PK no zip", None])
def test_what_is_no_wheel_is_refused_by_name_and_passed_over_on_the_shelf(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / ("a-1.whl" if content is None else "a-1-py3-none-any.whl")
    path.write_bytes(content or b"")
    with pytest.raises(InvalidInput, match="is not a wheel that can be read"):
        read_wheel(path)
    assert Shelf(tmp_path).wheels() == []


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert Shelf(tmp_path / "none").listing() == () and Shelf(tmp_path / "none").wheels() == []


def test_every_target_takes_pure_wheels_and_its_own_best_first(tmp_path: Path) -> None:
    for python in PYTHONS:
        for machine in MACHINES:
            target = Target(python, machine)
            assert target.platforms[0] == f"manylinux_2_35_{machine}"
            own = f"cp{python[0]}{python[1]}"
            wheel(tmp_path, f"x-1-{own}-{own}-manylinux_2_17_{machine}.whl")
            wheel(tmp_path, f"x-1-{own}-{own}-manylinux_2_28_{machine}.whl")
            chosen = Shelf(tmp_path).needed(target, [Requirement("x")]).wheels
            assert [one.path.name for one in chosen] == [f"x-1-{own}-{own}-manylinux_2_28_{machine}.whl"]
