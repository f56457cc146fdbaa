"""One tab of a headless Chromium, for tests of pages."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Browser:
    """One tab, driven through the DevTools protocol where WebDriver has no word for it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def cdp(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def open(
        self, path: Path, *, width: int = 1280, dark: bool = False, media: str = "", calm: bool = False
    ) -> None:
        """Load a file afresh in a window of this width, with these preferences and scripts on."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        self.cdp("Emulation.setEmulatedMedia", media=media, features=features)
        self.driver.get("about:blank")
        self.messages()
        self.requests()
        self.driver.get(path.resolve().as_uri())

    def messages(self) -> list[str]:
        """Console messages since the last call: errors, warnings, policy violations."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    def pdf(self) -> bytes:
        return base64.b64decode(self.cdp("Page.printToPDF", printBackground=True)["data"])


def eventually(found: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `found` gives once it is true; while a page changes under it there is nothing to find."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(NoSuchElementException, StaleElementReferenceException):
            if value := found():
                return value
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
