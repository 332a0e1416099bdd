"""The picture in the guide: `python -m tests.console.picture docs/console.png`."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from pathlib import Path

import httpx

from tests.console.browser import Browser, chromium
from tests.console.conftest import admin_url
from tests.e2e.serving import kvasir_serve

SIZE = (1360, 900)
LOAD_S = 60.0
RATE = 1.5  # requests a second
QUESTIONS = (
    "What is the capital of Norway?", "What is 17 plus 25?", "Spell the word river.",
    "Which month comes after June?", "Count from 3 to 40.", "What is the capital of Peru?",
)  # fmt: skip
MANY = {"router": {"disaggregation": "auto"}, "planner": {"mode": "advise", "every_s": 5}}


async def load(url: str, model: str) -> None:
    """Poisson arrivals of small questions after texts of many lengths, of two classes."""
    rng = random.Random(7)
    async with httpx.AsyncClient(timeout=60) as http, asyncio.TaskGroup() as tasks:
        until = asyncio.get_running_loop().time() + LOAD_S
        while asyncio.get_running_loop().time() < until:
            before = "one two three four five " * rng.choice((0, 4, 40, 120))
            body = {
                "model": model,
                "messages": [{"role": "user", "content": before + rng.choice(QUESTIONS)}],
                "max_tokens": 60,
            }
            slo = rng.choice(("interactive", "standard", "standard", "batch"))
            headers = {"x-kvasir-class": slo}
            tasks.create_task(http.post(f"{url}/v1/chat/completions", json=body, headers=headers))
            await asyncio.sleep(rng.expovariate(RATE))


def shoot(browser: Browser, out: Path) -> None:
    browser.driver.find_element("css selector", "#chat-text").send_keys(
        "What is the capital of France?\n"
    )
    browser.until("document.querySelector('#chat .assistant a')")
    browser.js("document.activeElement.blur()")
    bottom = "Math.ceil(document.querySelector('#chat').getBoundingClientRect().bottom + scrollY)"
    browser.size(SIZE[0], browser.js(bottom) + 16)  # what is below says less than it weighs
    browser.until("document.querySelector('#now .line').getAttribute('d')")
    browser.driver.save_screenshot(str(out))


def main() -> None:
    out = Path(sys.argv[1])
    with (
        tempfile.TemporaryDirectory() as folder,
        kvasir_serve(Path(folder), "--prefill=2", "--decode=2", workers=4, changes=MANY) as serving,
        chromium() as browser,
    ):
        browser.open(admin_url(serving), width=SIZE[0], height=SIZE[1])
        asyncio.run(load(serving.url, serving.model))
        shoot(browser, out)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
