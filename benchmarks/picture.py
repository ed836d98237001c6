"""The README's picture: a report's page as Chromium shows it. `python -m benchmarks.picture demo-out/report.html`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parent.parent / "docs" / "report.png"


def take(page: Path, picture: Path, width: int = 1100, height: int = 1040) -> None:
    """Write the upper part of `page`, `width` by `height` CSS pixels, to `picture`."""
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("no Chromium is installed here; `make ci-deps` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        try:
            shown = browser.new_page(viewport={"width": width, "height": height})
            shown.goto(page.resolve().as_uri())
            shown.wait_for_timeout(1000)
            shown.screenshot(path=picture)
        finally:
            browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.picture REPORT.html")
    take(Path(sys.argv[1]), PICTURE)
