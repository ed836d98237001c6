from __future__ import annotations

import subprocess
import sys

import pytest

import fleetfit
from fleetfit.core.errors import UnsupportedHere


def test_the_public_names_are_these() -> None:
    assert fleetfit.__all__ == ["Client", "FleetfitError", "__version__", "connect", "export", "trainable"]
    for name in fleetfit.__all__:
        assert getattr(fleetfit, name) is not None
    assert dir(fleetfit) == sorted(fleetfit.__all__)


def test_importing_fleetfit_loads_nothing_heavy() -> None:
    code = "import sys, fleetfit; print({'grpc', 'typer', 'rich', 'torch', 'numpy', 'pydantic'} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        _ = fleetfit.exprot


@pytest.mark.parametrize(
    ("missing", "raises", "words"),
    [
        ("fleetfit.client", UnsupportedHere, "fleetfit.connect is not part of what a device is given"),
        # What a broken environment lacks is said as it is.
        ("grpc", ModuleNotFoundError, "grpc"),
    ],
)
def test_a_name_whose_home_is_not_there_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, missing: str, raises: type[Exception], words: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("fleetfit.client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(vars(fleetfit), "connect", raising=False)
    with pytest.raises(raises, match=words):
        _ = fleetfit.connect
