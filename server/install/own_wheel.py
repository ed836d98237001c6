"""The wheel that devices get of this very fleetfit, made again from what is installed: the server's version, also a checkout's.

It holds what a device needs and asks for no more packages than that imports. Its version says so (`0.1.0+device`), so that
neither a person nor pip takes it for the whole: https://packaging.python.org/en/latest/specifications/version-specifiers/.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distribution, distributions
from itertools import groupby
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fleetfit.core.package import device_files
from fleetfit.server.install.shelf import RUNTIMES

_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: fleetfit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
# The same content gives the same bytes, whenever it is made; zip files know no earlier time.
_TIME: Final = (1980, 1, 1, 0, 0, 0)
# Nothing on a device imports them: recipes and device profiles are YAML, and neither are there (a test follows the imports).
_NOT_ON_DEVICES: Final = frozenset({"grpcio-status", "pyyaml"})
_EXTRA: Final = re.compile(r"""\bextra\s*==\s*["']([^"']+)["']""")


def own_wheel() -> tuple[str, bytes]:
    """Name and content of the wheel (pure Python; the same code gives the same bytes)."""
    installed = _installed()
    version = f"{installed.version}{'.' if '+' in installed.version else '+'}device"
    stem = f"fleetfit-{version}"
    info = f"{stem}.dist-info"
    files = device_files()
    files |= {f"{info}/{name}": content for name, content in _metadata(installed, version, files).items()}
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in sorted(files.items()))
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name], zipfile.ZIP_DEFLATED)
    return f"{stem}-py3-none-any.whl", out.getvalue()


def _installed() -> Distribution:
    """What pip has installed: what building a checkout leaves beside it, which is found before that, may be out of date."""
    found = list(distributions(name="fleetfit"))
    return next((one for one in found if one.read_text("METADATA") is not None), None) or distribution("fleetfit")


def _metadata(installed: Distribution, version: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    found = {"WHEEL": _WHEEL.encode(), "entry_points.txt": _entry_points(installed, files).encode()}
    text = installed.read_text("METADATA") or installed.read_text("PKG-INFO")
    if text is not None:
        found["METADATA"] = "".join(f"{line}\n" for line in _headers(text, version)).encode()
    for file in installed.files or ():
        if file.parts[-2:-1] == ("licenses",) and ".dist-info" in file.parts[0]:
            found[f"licenses/{file.name}"] = Path(str(file.locate())).read_bytes()
    return found


def _headers(metadata: str, version: str) -> Iterator[str]:
    """The metadata's lines for a device: what it requires there, the extras that bring a runtime, no description."""
    for line in metadata.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(": ")
        if name == "Version":
            yield f"Version: {version}"
        elif name == "Provides-Extra":
            if value in RUNTIMES:
                yield line
        elif name == "Requires-Dist":
            extra = _EXTRA.search(value)
            if extra[1] in RUNTIMES if extra else canonicalize_name(Requirement(value).name) not in _NOT_ON_DEVICES:
                yield line
        elif name != "Description-Content-Type":
            yield line


def _entry_points(installed: Distribution, files: Mapping[str, bytes]) -> str:
    """Those whose module is there."""
    there = sorted(
        (one.group, one.name, one.value)
        for one in installed.entry_points
        if one.module.replace(".", "/") + ".py" in files
    )
    sections = (
        (group, [f"{name} = {value}\n" for _, name, value in entries])
        for group, entries in groupby(there, key=lambda one: one[0])
    )
    return "\n".join(f"[{group}]\n{''.join(lines)}" for group, lines in sections)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
