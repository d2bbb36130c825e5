"""A headless Chromium by selenium, with Debian's driver; and screenshots of a report by a command:

python -m tests.report.browser REPORT.html FOLDER [--width 1280 400] [--theme light dark]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DRIVER = "/usr/bin/chromedriver"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)
WAIT = 120
"""Seconds for a page to draw itself on a busy machine."""


def missing() -> str:
    """What keeps a browser from starting; "" when nothing does."""
    if not Path(DRIVER).exists():
        return f"no {DRIVER} (Debian: apt-get install chromium chromium-driver)"
    return "" if shutil.which("chromium") else "no chromium"


@contextmanager
def browser() -> Iterator[Any]:
    """A driver whose profile is new; its log holds what pages say to the console."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            driver.set_page_load_timeout(WAIT)
            driver.set_script_timeout(WAIT)
            yield driver
        finally:
            driver.quit()


def show(driver: Any, page: Path, width: int, height: int = 900) -> None:
    """Open a page as wide as that, as on a telephone where it is narrow, until it is drawn."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(page.resolve().as_uri())
    end = time.monotonic() + WAIT
    while driver.execute_script("return document.documentElement.dataset.drawn") != "yes":
        assert time.monotonic() < end, "the page was not drawn"
        time.sleep(0.05)


def main(argv: Sequence[str] | None = None) -> None:
    """Pictures of a whole page, and of its first screen."""
    import base64

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, nargs="+", default=[1280, 400])
    parser.add_argument("--theme", nargs="+", default=["light", "dark"])
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    with browser() as driver:
        for width in options.width:
            for theme in options.theme:
                show(driver, options.report, width)
                driver.execute_script(f"document.querySelector('[data-theme={theme}]').click()")
                time.sleep(1)
                for whole in (False, True):
                    wish = {"format": "png", "captureBeyondViewport": whole}
                    if whole:
                        tall = driver.execute_script("return document.body.scrollHeight")
                        wish["clip"] = {"x": 0, "y": 0, "width": width, "height": tall, "scale": 1}
                    shot = driver.execute_cdp_cmd("Page.captureScreenshot", wish)["data"]
                    name = f"{theme}_{width}{'_whole' if whole else ''}.png"
                    (options.folder / name).write_bytes(base64.b64decode(shot))


if __name__ == "__main__":
    main()
