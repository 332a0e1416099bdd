"""A headless Chromium as Debian packages it, driven by its own chromedriver. Nothing is fetched."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

PATIENCE_S = 60.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--disable-lcd-text"),
)
# Sums how far things jumped without anybody having touched the page: Chromium's layout shift score.
WATCH_SHIFTS = """
window.shifts = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
}).observe({type: "layout-shift", buffered: true});
"""


class Browser:
    """One tab."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.tell("Page.addScriptToEvaluateOnNewDocument", source=WATCH_SHIFTS)

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """The page anew, at that size, when it has its first answer."""
        self.size(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get("about:blank")  # else a new #fragment would be no new page
        self.driver.get(url)
        self.until("document.body?.dataset.state === 'live'")

    def size(self, width: int, height: int) -> None:
        mobile = width < 600
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=mobile,
        )  # fmt: skip

    def tell(self, command: str, **arguments: Any) -> Any:
        """DevTools' protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def js(self, expression: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {expression.strip()}", *arguments)

    def until(self, expression: str, *arguments: Any) -> Any:
        """Its value, as soon as it is true."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if value := self.js(expression, *arguments):
                return value
            time.sleep(0.1)
        raise AssertionError(f"never true: {expression}\nthe page says:\n{self.text('body')}")

    def text(self, selector: str) -> str:
        return self.js("document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def faults(self) -> list[str]:
        """What the browser itself complained of since the last call, but for requests that failed:
        those have tests of their own."""
        found = [json.dumps(entry["message"]) for entry in self.driver.get_log("browser")]
        return [each for each in found if "Failed to load resource" not in each]


@contextmanager
def chromium() -> Iterator[Browser]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.fail("no chromium here: apt install chromium chromium-driver fonts-dejavu-core")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(chrome)
    finally:
        chrome.quit()
