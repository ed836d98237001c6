"""The wheel of this very fleetfit, made again from what is installed: agents get the server's version, also a checkout's."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Final

from fleetfit.core.package import package_files

_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: fleetfit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
# The same content gives the same bytes, whenever it is made; zip files know no earlier time.
_TIME: Final = (1980, 1, 1, 0, 0, 0)


def own_wheel() -> tuple[str, bytes]:
    """Name and content of the wheel (pure Python; the same code gives the same bytes)."""
    installed = _installed()
    stem = f"fleetfit-{installed.version}"
    info = f"{stem}.dist-info"
    files = package_files() | {f"{info}/{name}": content for name, content in _metadata(installed).items()}
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
