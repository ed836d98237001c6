from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.digests import canonical_json, is_sha256, key_of, sha256_bytes, sha256_file

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_form_reads_back_as_the_same_value(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2, max_size=6))
def test_key_does_not_depend_on_order(value: dict[str, int]) -> None:
    assert key_of(value) == key_of(dict(reversed(value.items())))


def test_not_a_number_has_no_key() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        key_of({"lr": float("nan")})


def test_file_and_bytes_agree(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(content)
    assert sha256_file(tmp_path / "f") == sha256_bytes(content) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("text", ["", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_what_is_not_a_digest_never_becomes_a_path(text: str) -> None:
    assert not is_sha256(text)
