from __future__ import annotations

import subprocess
import sys

import pytest

import fleetfit


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
