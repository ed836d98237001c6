"""`python -m fleetfit.server.report.golden IN.json OUT.json`: a health check's samples summed up, and its outputs compared.

A child of the server, as `analyse` is. The input names the result and, where there are any, the outputs, both from a device.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fleetfit.core.figures import number
from fleetfit.server.golden import Golden, golden
from fleetfit.server.report.analyse import read_result, summarize, write


def what_is_wrong(path: Path, model: Golden) -> str:
    """What is wrong with outputs that a device returned, an .npz, as a clause; empty where they are the golden model's."""
    expected = np.asarray(model.expected, dtype=np.float64)
    try:
        # Opened here: what NumPy opens itself it leaves open where it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = np.asarray(arrays[model.output.name], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return "it returned no outputs that can be read"
    if found.shape != expected.shape:
        return f"its outputs have the shape {list(found.shape)}, where {list(expected.shape)} was expected"
    if not np.isfinite(found).all():
        return f"{int((~np.isfinite(found)).sum())} of {found.size} of its outputs are not finite numbers"
    off = np.abs(found - expected)
    if off.max() <= model.tolerance:
        return ""
    return (
        f"its outputs are wrong: {int((off > model.tolerance).sum())} of {off.size} are off by more than "
        f"{number(model.tolerance)}, the worst by {number(float(off.max()))}"
    )


def main(arguments: Sequence[str]) -> int:
    """Sum one check up."""
    source, out = Path(arguments[0]), Path(arguments[1])
    wanted = json.loads(source.read_text())
    summary = summarize(read_result(Path(wanted["result"])))
    wrong = what_is_wrong(Path(wanted["outputs"]), golden()) if wanted["outputs"] else None
    write(json.dumps({"summary": summary.model_dump(mode="json"), "wrong": wrong}), out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
