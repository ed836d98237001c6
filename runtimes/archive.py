"""A build of several files as one: a zip without compression, whose bytes depend on nothing but its members."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence

from fleetfit.core.errors import InvalidModel


def pack(members: Mapping[str, bytes]) -> bytes:
    """The archive of these files, in their order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def unpack(build: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """The files of those names, which must be all there are. Nothing is written to a disk.

    Raises InvalidModel with a sentence where the bytes are no such archive.
    """
    wanted = ", ".join(names)
    try:
        with zipfile.ZipFile(io.BytesIO(build)) as archive:
            members = archive.infolist()
            if sorted(member.filename for member in members) != sorted(names):
                raise InvalidModel(f"the build is not an archive of {wanted} alone; build it again")
            for member in members:
                # Stored, not packed: nothing can become larger than what was sent.
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(build):
                    raise InvalidModel(f"the build's {member.filename} is compressed; build it again")
            return {member.filename: archive.read(member) for member in members}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise InvalidModel(
            f"the build is not an archive of {wanted}, or is damaged; fetch or build it again"
        ) from error
