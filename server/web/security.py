"""What a browser is told about a page: what may run in it, and who may ask for it."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser
from typing import Final

# Nothing from elsewhere, no scripts, in nobody's frame.
OWN_PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
COMMON_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
_OWN_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")


def report_policy(page: str) -> str:
    """A policy under which exactly the scripts that the rendered report came with may run, named by their digests."""
    parser = _Scripts()
    parser.feed(page)
    parser.close()
    digests = dict.fromkeys(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in parser.found
    )
    scripts = " ".join(digests) or "'none'"
    # Charts set styles on their elements while they run.
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def is_own_host(header: str) -> bool:
    """Whether a Host header names this machine: a page elsewhere whose name was made to lead here must get nothing."""
    host = header.rsplit(":", 1)[0] if not header.endswith("]") else header
    return host.lower() in _OWN_HOSTS


class _Scripts(HTMLParser):
    """Collects the text of a page's inline scripts, as the browser sees it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._inside: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script" and "src" not in dict(attrs):
            self._inside = []

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self._inside.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self._inside is not None:
            # Browsers turn all line ends into one form before they look at a script.
            self.found.append("".join(self._inside).replace("\r\n", "\n").replace("\r", "\n"))
            self._inside = None
