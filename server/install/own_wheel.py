"""The wheel of this very fleetfit, made again from what is installed: agents get the server's version, also a checkout's."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zipfile
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Final

import fleetfit

_SUFFIXES: Final = frozenset(
    {".py", ".pyi", ".proto", ".yaml", ".yml", ".json", ".html", ".css", ".js", ".mako", ".ini", ".typed"}
)
_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: fleetfit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
# The same content gives the same bytes, whenever it is made; zip files know no earlier time.
_TIME: Final = (1980, 1, 1, 0, 0, 0)


def own_wheel() -> tuple[str, bytes]:
    """Name and content of the wheel (pure Python; the same code gives the same bytes)."""
    installed = _installed()
    stem = f"fleetfit-{installed.version}"
    info = f"{stem}.dist-info"
    files = _package() | {f"{info}/{name}": content for name, content in _metadata(installed).items()}
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


def _package() -> dict[str, bytes]:
    root = Path(fleetfit.__file__).parent
    found = {}
    # In a checkout the components are links.
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if name.isidentifier() and name != "__pycache__")
        for name in names:
            path = Path(folder) / name
            if path.suffix in _SUFFIXES or name == "py.typed":
                found[(Path("fleetfit") / path.relative_to(root)).as_posix()] = path.read_bytes()
    return found


def _metadata(installed: Distribution) -> dict[str, bytes]:
    found = {"WHEEL": _WHEEL.encode()}
    for name in ("METADATA", "entry_points.txt"):
        text = installed.read_text(name) or (installed.read_text("PKG-INFO") if name == "METADATA" else None)
        if text is not None:
            found[name] = text.encode()
    for file in installed.files or ():
        if file.parts[-2:-1] == ("licenses",) and ".dist-info" in file.parts[0]:
            found[f"licenses/{file.name}"] = Path(str(file.locate())).read_bytes()
    return found


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
