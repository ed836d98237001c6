"""Builds of several files: only those files come out, and nothing larger than what was sent."""

from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.archive import pack, unpack


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_what_was_packed_comes_out_and_the_same_files_give_the_same_bytes(one: bytes, other: bytes) -> None:
    members = {"a.xml": one, "b.bin": other}
    assert unpack(pack(members), ["b.bin", "a.xml"]) == members
    assert pack(members) == pack(members)


@given(st.binary(max_size=300))
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidModel, match="not an archive of a, b"):
        unpack(content, ["a", "b"])


@given(st.data())
def test_damage_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    members = {"a": b"some weights", "b": b"0123456789"}
    damaged = bytearray(pack(members))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert unpack(bytes(damaged), ["a", "b"]) == members
    except InvalidModel:
        pass


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["a", "../b"], ["a", "b", "b"], []])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_members_are_refused(names: list[str]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with pytest.raises(InvalidModel, match="a, b"):
        unpack(buffer.getvalue(), ["a", "b"])


def test_what_would_grow_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1 << 20))
    with pytest.raises(InvalidModel, match="compressed"):
        unpack(buffer.getvalue(), ["a"])
