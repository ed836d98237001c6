"""Reading small files that may not be there, below a root that tests can replace."""

from __future__ import annotations

from pathlib import Path


class Tree:
    """The machine's files. Whatever cannot be read is None or empty: absence is a value here."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.real = root == Path("/")

    def text(self, path: str) -> str | None:
        """The content without surrounding blanks and NULs."""
        try:
            return (self.root / path.lstrip("/")).read_bytes().replace(b"\0", b"\n").decode(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The content as a whole number."""
        text = self.text(path)
        try:
            return int(text, 0) if text else None
        except ValueError:
            return None

    def kibibytes(self, path: str, key: str) -> int | None:
        """A line `KEY: N kB`, in bytes."""
        for line in self.lines(path):
            name, _, value = line.partition(":")
            if name == key and value.split()[:1] and value.split()[0].isdigit():
                return int(value.split()[0]) * 1024
        return None

    def link(self, path: str) -> str | None:
        """What a symbolic link points to."""
        try:
            return str((self.root / path.lstrip("/")).readlink())
        except OSError:
            return None

    def lines(self, path: str) -> list[str]:
        """The content's lines."""
        return (self.text(path) or "").splitlines()

    def paths(self, pattern: str) -> list[str]:
        """Paths below the root that match, sorted."""
        return sorted("/" + str(path.relative_to(self.root)) for path in self.root.glob(pattern.lstrip("/")))
