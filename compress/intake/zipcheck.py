"""What any uploaded zip (`.pt2`, `.npz`) must satisfy before one byte of it is unpacked. Needs only the standard library."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleetfit.core.errors import FleetfitError, InvalidInput

_GIB = 1 << 30
_STORED_OR_DEFLATED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
# The record that ends a zip without a comment.
_END_BYTES = 22


@dataclass(frozen=True)
class ZipLimits:
    """How large a zip may be: `entry_bytes` and `total_bytes` count what it unpacks to."""

    entries: int = 20_000
    entry_bytes: int = 4 * _GIB
    total_bytes: int = 8 * _GIB
    name_length: int = 512
    # Deflate cannot exceed 1032:1; zeros in a sparse-looking data set reach 200:1 honestly, so small entries may.
    ratio: int = 300
    ratio_free_bytes: int = 64 << 20


@contextmanager
def open_checked(
    path: Path,
    *,
    what: str,
    cure: str,
    error: type[InvalidInput],
    limits: ZipLimits | None = None,
) -> Iterator[zipfile.ZipFile]:
    """Open `path` as a zip whose directory keeps within `limits`.

    `what` names the file in the sentence of an error, `cure` says how to make a good one. Whatever `zipfile` raises inside
    the block (truncated data, wrong checksums) becomes `error` too.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if magic[:2] != b"PK":
                raise error(f"{what} is not a zip archive; {cure}.")
            # A cut-off archive that holds archives would otherwise be read as the last of those.
            file.seek(max(path.stat().st_size - _END_BYTES, 0))
            if file.read(4) != b"PK\x05\x06":
                raise error(f"{what} is damaged or was cut off while it was copied; {cure}.")
        with zipfile.ZipFile(path) as archive:
            check_directory(
                archive, path.stat().st_size, what=what, cure=cure, error=error, limits=limits or ZipLimits()
            )
            yield archive
    except FleetfitError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError, OSError) as bad:
        raise error(
            f"{what} is damaged or was cut off while it was copied; {cure}.", private=f"{type(bad).__name__}: {bad}"
        ) from bad


def check_directory(
    archive: zipfile.ZipFile, file_bytes: int, *, what: str, cure: str, error: type[InvalidInput], limits: ZipLimits
) -> None:
    """Check names, counts, sizes and ratios in a zip's directory, without unpacking anything.

    Raises:
        InvalidInput: The given `error`, with what is wrong.
    """
    infos = archive.infolist()
    if len(infos) > limits.entries:
        raise error(f"{what} has {len(infos)} entries where {limits.entries} are allowed; {cure}.")
    seen: set[str] = set()
    total = 0
    if infos and min(info.header_offset for info in infos) != 0:
        raise error(f"{what} has something before its archive; {cure}.")
    for info in infos:
        name = info.filename
        plain = name.isprintable() and name.isascii() and "\\" not in name and len(name) <= limits.name_length
        if not plain or {"", ".", ".."} & set(name.split("/")):
            raise error(f"{what} has an entry with the unsafe name {name[:60]!r}; {cure}.")
        # Readers differ in what they do with two entries of one name, and PyTorch's reader ignores case.
        if name.casefold() in seen:
            raise error(f"{what} has two entries named {name!r}; {cure}.")
        seen.add(name.casefold())
        if info.flag_bits & _ENCRYPTED or info.compress_type not in _STORED_OR_DEFLATED:
            raise error(f"{what} has the encrypted or unusually compressed entry {name!r}; {cure}.")
        if info.file_size > limits.entry_bytes:
            raise error(f"{what} has an entry {name!r} of {info.file_size} bytes, which is too large; {cure}.")
        if info.file_size > limits.ratio_free_bytes and info.file_size > limits.ratio * max(info.compress_size, 1):
            raise error(f"{what} looks like a zip bomb: its entry {name!r} unpacks to {info.file_size} bytes; {cure}.")
        if info.header_offset + info.compress_size > file_bytes:
            raise error(f"{what} is damaged or was cut off while it was copied; {cure}.")
        total += info.file_size
    if total > limits.total_bytes:
        raise error(f"{what} would unpack to {total} bytes where {limits.total_bytes} are allowed; {cure}.")


def read_entry(archive: zipfile.ZipFile, name: str, *, limit: int, what: str, error: type[InvalidInput]) -> bytes:
    """The content of one entry, never more than `limit` bytes whatever the directory claims."""
    with archive.open(name) as entry:
        content = entry.read(limit + 1)
    if len(content) > limit:
        raise error(f"{what} has an entry {name!r} larger than the {limit} bytes allowed for it.")
    return content
