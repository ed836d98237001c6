"""The contract of `Runtime` in tests. A class that inherits it says on which adapter, by `name`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleetfit.core.errors import UnsupportedHere
from fleetfit.runtimes.base import Runtime
from fleetfit.runtimes.contract import CHECKS, refuses_external_data
from fleetfit.runtimes.registry import runtimes
from fleetfit.runtimes.samples import WEIGHTS, Samples, samples_of

from .builds import external

ADAPTERS = {name: adapter for name, adapter in runtimes().items() if isinstance(adapter, Runtime)}


class RuntimeContract:
    """Tests of the adapter `name`."""

    @pytest.fixture
    def adapter(self, name: str) -> Runtime:
        adapter = ADAPTERS[name]
        availability = adapter.availability()
        if not availability.available:
            pytest.skip(availability.reason)
        return adapter

    @pytest.fixture
    def samples(self, adapter: Runtime) -> Samples:
        found = samples_of(adapter.formats)
        if found is None:
            pytest.skip(f"fleetfit.runtimes.samples has no {' or '.join(adapter.formats)}")
        return found

    def test_it_says_what_it_is(self, name: str) -> None:
        adapter = ADAPTERS[name]
        assert adapter.name == name
        assert adapter.formats and all(re.fullmatch(r"[a-z0-9_]+", format) for format in adapter.formats)

    def test_it_is_available_with_a_version_or_says_what_is_missing(self, name: str) -> None:
        availability = ADAPTERS[name].availability()
        if availability.available:
            assert availability.version and availability.providers and not availability.reason
        else:
            assert availability.reason and not availability.version
            with pytest.raises(UnsupportedHere):
                ADAPTERS[name].load(b"", threads=1)

    @pytest.mark.parametrize("check", CHECKS)
    def test_it_keeps_the_contract(self, adapter: Runtime, samples: Samples, check: str) -> None:
        CHECKS[check](adapter, samples)

    @pytest.mark.parametrize("location", ["./weights.bin", "../weights.bin", "absolute"])
    def test_data_outside_the_build_cannot_be_reached_by_any_path(
        self, adapter: Runtime, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if "onnx" not in adapter.formats:
            return  # builds of its formats hold all their data
        here = tmp_path / "here"
        here.mkdir()
        for folder in (tmp_path, here):
            (folder / "weights.bin").write_bytes(WEIGHTS.tobytes())
        monkeypatch.chdir(here)
        refuses_external_data(adapter, external(location.replace("absolute", str(here / "weights.bin"))))
