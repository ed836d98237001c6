"""The registry, on adapters that are installed for a test the way a third party's would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fleetfit.core.errors import UnsupportedHere
from fleetfit.runtimes.base import Availability, Runtime
from fleetfit.runtimes.registry import runtime, runtimes

Install = Callable[[str, str], None]
ADAPTER = """
from fleetfit.runtimes.base import Availability, Runtime
class Adapter(Runtime):
    name, formats = {name!r}, ("thing",)
    def availability(self): return Availability({available}, {reason!r}, "1.0")
    def load(self, build, *, threads): raise NotImplementedError
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution of one module that registers one runtime."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(name: str, source: str) -> None:
        (tmp_path / f"{name}_adapter.py").write_text(source)
        facts = tmp_path / f"{name}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[fleetfit.runtimes]\n{name} = {name}_adapter:Adapter\n")

    return installed


def test_our_own_adapter_is_installed_like_any_other() -> None:
    adapter = runtimes()["onnxruntime"]
    assert isinstance(adapter, Runtime) and "onnx" in adapter.formats


def test_a_third_partys_adapter_is_found(install: Install) -> None:
    install("elsewhere", ADAPTER.format(name="elsewhere", available=True, reason=""))
    assert isinstance(runtimes()["elsewhere"], Runtime)
    assert runtime("elsewhere").formats == ("thing",)


@pytest.mark.parametrize(
    "source",
    ["import a_package_that_nobody_has", "raise RuntimeError('no such chip')", "Adapter = 3", "", "def broken(:"],
)
def test_an_adapter_that_cannot_be_imported_is_shown_with_its_reason(install: Install, source: str) -> None:
    install("broken", source)
    found = runtimes()
    shown = found["broken"]
    assert isinstance(shown, Availability) and not shown.available
    assert "broken_adapter:Adapter cannot be imported: " in shown.reason
    assert isinstance(found["onnxruntime"], Runtime)
    with pytest.raises(
        UnsupportedHere, match=r"broken cannot be used on this device: its adapter .* cannot be imported"
    ):
        runtime("broken")


def test_an_adapter_whose_package_is_missing_says_so(install: Install) -> None:
    install("missing", ADAPTER.format(name="missing", available=False, reason="pip install the-thing"))
    with pytest.raises(UnsupportedHere, match="missing cannot be used on this device: pip install the-thing"):
        runtime("missing")


def test_an_unknown_runtime_is_a_clear_error() -> None:
    with pytest.raises(UnsupportedHere, match="knows no runtime 'abacus'; update fleetfit here, or install"):
        runtime("abacus")
