"""`python -m fleetfit.agent.precompile`: import what runs on a device, so that Python keeps it compiled.

The installer runs it once: the service may not write where it is installed, and every process that measures would compile all
of it again. What nothing of this imports stays as it came; of what runtimes bring that is most.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
from importlib import import_module
from typing import Final

from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.snapshot import take_snapshot

# What starts with the device, the resident agent that it becomes, and what that starts; not what people call now and then.
_ALWAYS: Final = (
    "fleetfit.agent.command",
    "fleetfit.agent.__main__",
    "fleetfit.agent.hooks",
    "fleetfit.agent.probe.__main__",
    "fleetfit.agent.probe.runtimes",
)
_MEASURING: Final = "fleetfit.agent.measuring"
# Imported by a module of NumPy's when it is first used.
_LATE: Final = ("numpy.random",)


def main() -> None:
    """Import. What cannot be imported is for `agent doctor` to report."""
    for name in _ALWAYS:
        import_module(name)
    # Without NumPy, which comes with the runtimes, nothing is measured.
    with contextlib.suppress(ImportError):
        below = pkgutil.iter_modules(import_module(_MEASURING).__path__, f"{_MEASURING}.")
        for name in [*(one.name for one in below), *_LATE]:
            import_module(name)
    # Every adapter and meter. Last: runtimes that cannot be used here have been seen to end the process.
    take_snapshot(Tree())


if __name__ == "__main__":
    main()
    # Some libraries crash or hang at the end of a process.
    os._exit(0)
