"""`python -m fleetfit.agent.selfproof OUT`: make the file, and tell how far it is in lines of JSON on standard output."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfit.core.children import limit_self

if __name__ == "__main__":
    limit_self()

from fleetfit.agent.disk import give_temporary_folder, has_temporary_folder
from fleetfit.core.errors import FleetfitError, UnsupportedHere

if TYPE_CHECKING:
    from fleetfit.agent.selfproof.making import Maker


def main(arguments: list[str]) -> int:
    """Make the file; what a person can do something about is said as `{"refused": ...}`."""
    parser = argparse.ArgumentParser(prog="python -m fleetfit.agent.selfproof")
    parser.add_argument("out", type=Path)
    parser.add_argument("--runtime", action="append", default=[])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--method", default="standard")
    parser.add_argument("--emulated", action="store_true")
    options = parser.parse_args(arguments)
    told: list[tuple[str, int]] = []

    def tell(activity: str, done: float) -> None:
        now = (activity, int(1000 * done))
        if told != [now]:
            told[:] = [now]
            print(json.dumps({"activity": activity, "fraction": round(done, 3)}), flush=True)

    try:
        maker_of = _maker()
        place = None if has_temporary_folder() else options.out.resolve().parent
        with tempfile.TemporaryDirectory(prefix="fleetfit-", dir=place) as folder:
            give_temporary_folder(Path(folder) / "tmp")
            maker = maker_of(
                Path(folder), threads=options.threads, emulated=options.emulated, method=options.method, tell=tell
            )
            content = asyncio.run(maker.make(options.runtime))
    except FleetfitError as error:
        print(json.dumps({"refused": error.message, "code": error.code}), flush=True)
        return 1
    fresh = options.out.with_name(options.out.name + ".new")
    fresh.write_bytes(content)
    os.replace(fresh, options.out)
    return 0


def _maker() -> type[Maker]:
    """Comes with the runtimes: they need NumPy, an agent without any has none. Raises UnsupportedHere."""
    try:
        from fleetfit.agent.selfproof.making import Maker
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise UnsupportedHere(
            'no inference runtime is installed here, so there is nothing to check; pip install "fleetfit[onnxruntime]"'
        ) from error
    return Maker


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
