"""The console in a real browser, against a real cluster: it shows what is there and what is not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import httpx
import pytest
import redis
from selenium.webdriver.common.keys import Keys

from cluster.autoscaler.published import Published
from tests.console.browser import Browser
from tests.console.conftest import Operated
from workers.core.clock import unix_time
from workers.wire.redis_keys import plan_key

pytestmark = pytest.mark.timeout(300)  # the first one starts the cluster, if no other did
MOST_SHIFT = 0.05  # of Chromium's score; below 0.1 is called good

STATE = "document.querySelector(`[data-replica='${arguments[0]}']`)?.dataset.state"
FOCUSABLE = """
[...document.querySelectorAll(
  'a[href], button, input, select, textarea, summary, [tabindex="0"]')].filter(
  (e) => !e.disabled && e.checkVisibility() && (e.type !== 'radio' || e.checked)).length
"""
# The outline of what has the focus; a radio's stands around its label.
FOCUSED = """
(() => {
  const e = document.activeElement;
  if (e === document.body) return null;
  e.dataset.reached = '';
  const seen = e.type === 'radio' ? e.nextElementSibling : e;
  return [e.outerHTML.slice(0, 120), getComputedStyle(seen).outlineStyle !== 'none'];
})()
"""
WITHOUT_DECODE_1 = """
const real = window.fetch;
window.later = 0;
window.fetch = async (path, ...rest) => {
  const answer = await real(path, ...rest);
  if (path !== 'api/overview') return answer;
  const told = await answer.json();
  told.at += window.later;
  for (const pool of told.pools) pool.replicas = pool.replicas.filter((r) => r.id !== 'decode-1');
  return new Response(JSON.stringify(told));
};
"""

# Answers to what has `first` in its path come late; what is sent to the chat is kept.
WITH_DELAYS = """
const real = window.fetch;
window.sent = [];
window.late = 0;
window.fetch = async (path, ...rest) => {
  if (path.endsWith('completions')) window.sent.push(JSON.parse(rest[0].body).messages);
  if (!path.includes('first')) return real(path, ...rest);
  await new Promise((done) => setTimeout(done, 700));
  const answer = await real(path, ...rest);
  setTimeout(() => { window.late += 1; }, 200);
  return answer;
};
"""
NASTY = "<img src=x onerror=window.hacked=1><b>bold</b>"


@pytest.fixture(autouse=True)
def nothing_the_browser_complains_of(browser: Browser) -> Iterator[None]:
    browser.faults()
    yield
    assert not browser.faults()


def ask(browser: Browser, text: str) -> str:
    """Says something in the chat and waits for the end of the answer."""
    browser.driver.find_element("css selector", "#chat-text").send_keys(text, Keys.ENTER)
    return browser.until(
        "[...document.querySelectorAll('#chat .assistant')].at(-1)?.querySelector('a')"
        "?.closest('.message').innerText"
    )


def test_pools_and_classes_appear(cluster: Operated, browser: Browser) -> None:
    browser.open(cluster.console)
    for replica in ("prefill-0", "decode-0", "decode-1"):
        browser.until(f"{STATE} === 'up'", replica)
    assert browser.js("[...document.querySelectorAll('.pool')].map((e) => e.dataset.pool)") == [
        "prefill", "decode",
    ]  # fmt: skip
    assert "2 of 2 replicas up" in browser.text("[data-pool=decode]")
    assert "0 / " in browser.text("[data-replica=decode-0]")
    assert browser.js("document.querySelectorAll('[role=meter]').length") == 3
    for name in ("interactive", "standard", "batch"):
        assert name in browser.text(f"[data-class={name}]")
    assert "No plan" in browser.until("document.querySelector('#plan .body').innerText")


def test_a_plan_is_shown_with_its_reasons(cluster: Operated, browser: Browser) -> None:
    plan = Published(
        at=unix_time(), mode="advise", pools={"prefill": 1, "decode": 3}, every_s=60.0,
        plan={
            "goal": 0.95, "feasible": True,
            "reasons": ["decode: 3 replicas for 7.5 requests a second foreseen"],
            "rejected": [{"choice": "2 decode", "why": "attainment 0.91 is below the goal"}],
        },
    )  # fmt: skip
    key = plan_key("kvasir")
    with redis.Redis.from_url(cluster.serving.redis_url) as client:
        client.set(key, plan.model_dump_json())
        try:
            browser.open(cluster.console)
            told = browser.until(
                "document.querySelector('#plan .reasons li')?.closest('.body').innerText"
            )
        finally:
            client.delete(key)
    assert "Mode advise" in told and "7.5 requests a second foreseen" in told
    assert "Not chosen: 1 other way" in told
    browser.click("#plan summary")
    assert "0.91 is below the goal" in browser.text("#plan details")
    rows = browser.js("[...document.querySelectorAll('#plan tbody tr')].map((e) => e.innerText)")
    assert [row.split()[:3] for row in rows] == [["decode", "2", "3"], ["prefill", "1", "1"]]


def test_a_chat_streams_and_says_where_it_went(cluster: Operated, browser: Browser) -> None:
    browser.open(cluster.console)
    watch = "document.querySelector('#chat .log')"
    browser.driver.execute_script(
        "window.seen = []; new MutationObserver(() => {"
        "  const text = [...document.querySelectorAll('#chat .assistant p')][0]?.textContent;"
        f"  if (text) window.seen.push(text); }}).observe({watch},"
        "  {childList: true, subtree: true, characterData: true});"
    )
    said = ask(browser, "What is the capital of France?")
    assert "Paris" in said and "first token after" in said and "tokens" in said
    lengths = browser.js("[...new Set(window.seen.map((text) => text.length))]")
    assert len(lengths) > 2 and lengths == sorted(lengths), "it came in pieces"
    browser.click("#chat .assistant a")
    browser.until("document.querySelector('dialog[open] .waterfall')")
    assert "standard" in browser.text("dialog .summary")
    browser.press(Keys.ESCAPE)
    browser.until("!document.querySelector('dialog').open")
    pair = browser.until("document.querySelector('[data-pair]')?.innerText")
    assert "prefill-0 → decode-" in pair and "shm" in pair


def test_a_request_opens_with_its_waterfalls_and_what_was_not_chosen(
    cluster: Operated, browser: Browser
) -> None:
    browser.open(cluster.console)
    ask(browser, "Spell the word cat.")
    browser.until("document.querySelector('#requests tr[data-request] a')")
    browser.click("#requests tr[data-request] a")
    browser.until("document.querySelectorAll('dialog[open] .waterfall').length === 2")
    assert browser.js("location.hash").startswith("#request/")
    parts = browser.js("[...document.querySelectorAll('[data-part]')].map((e) => e.dataset.part)")
    assert parts[0] == "tokenise" and "transfer" in parts and parts[-1] == "other"
    ends = browser.js(
        "[...document.querySelector('.waterfall').querySelectorAll('.part')].reduce("
        "  (sum, e) => sum + parseFloat(e.style.width), 0)"
    )
    assert ends == pytest.approx(100, abs=0.1), "the parts are the whole"
    marks = "[...document.querySelectorAll('[data-phase=decode] [data-mark]')]"
    assert browser.js(f"{marks}.map((e) => e.dataset.mark)").count("chosen") >= 1
    rows = "document.querySelectorAll('[data-phase=decode] tbody tr').length"
    assert browser.js(rows) >= 2, "both decode workers were candidates"
    assert "the first token is out" in browser.text("dialog .story")
    browser.press(Keys.ESCAPE)
    browser.until("!location.hash.startsWith('#request/')")


def test_an_unknown_request_says_so(cluster: Operated, browser: Browser) -> None:
    for typed in ("nobody", "nobody%"):
        browser.open(f"{cluster.console}#request/{typed}")
        assert typed in browser.until("document.querySelector('dialog[open] .warn')?.innerText")


def test_the_request_that_was_opened_last_is_the_one_shown(
    cluster: Operated, browser: Browser
) -> None:
    browser.open(cluster.console)
    browser.driver.execute_script(WITH_DELAYS)
    browser.driver.execute_script("location.hash = '#request/first'")
    browser.until("document.querySelector('#detail-title').innerText === 'first'")
    browser.driver.execute_script("location.hash = '#request/second'")
    browser.until("window.late === 1")
    assert "second" in browser.until("document.querySelector('dialog .warn')?.innerText")


def test_what_others_wrote_is_shown_and_never_run(cluster: Operated, browser: Browser) -> None:
    body = {"model": cluster.serving.model, "prompt": "one two", "max_tokens": 2}
    named = {"x-request-id": "of-a-stranger", "x-kvasir-tenant": NASTY}
    url = f"{cluster.serving.url}/v1/completions"
    httpx.post(url, json=body, headers=named, timeout=60).raise_for_status()
    browser.open(cluster.console)
    ask(browser, NASTY)
    assert NASTY in browser.text("#chat .user")
    browser.driver.execute_script("location.hash = '#request/of-a-stranger'")
    browser.until("document.querySelector('dialog[open] .summary')")
    assert NASTY in browser.text("dialog .summary")
    assert browser.js("document.querySelectorAll('img, b').length") == 0
    assert browser.js("window.hacked === undefined")
    policy = httpx.get(cluster.console).headers["content-security-policy"]
    assert "script-src 'self';" in policy and "frame-ancestors 'none'" in policy


def test_a_new_conversation_has_nothing_of_the_one_that_was_broken_off(
    cluster: Operated, browser: Browser
) -> None:
    browser.open(cluster.console)
    browser.driver.execute_script(WITH_DELAYS)
    text = browser.driver.find_element("css selector", "#chat-text")
    text.send_keys("Count from one to fifty.", Keys.ENTER)
    browser.until("document.querySelector('#chat .assistant p').textContent.length > 5")
    browser.js("[...document.querySelectorAll('#chat button')].at(-1).click()")
    browser.until("!document.querySelector('#chat button').disabled")
    ask(browser, "What is 2 plus 3?")
    before, after = browser.js("window.sent")
    assert [each["content"] for each in before] == ["Count from one to fifty."]
    assert [each["content"] for each in after] == ["What is 2 plus 3?"]


def test_everything_is_reached_with_the_keyboard_and_seen_to_be(
    cluster: Operated, browser: Browser
) -> None:
    browser.open(cluster.console)
    browser.until("document.querySelector('#requests tr[data-request] a')")
    wanted = browser.js(FOCUSABLE)
    assert wanted > 15
    browser.press(Keys.TAB)
    assert browser.js("document.activeElement.className") == "skip"
    for _ in range(wanted + 5):
        focus = browser.js(FOCUSED)
        if focus is None:
            break
        assert focus[1], f"focus cannot be seen on {focus[0]}"
        browser.press(Keys.TAB)
    reached = browser.js("document.querySelectorAll('[data-reached]').length")
    assert reached >= wanted, "something takes no part in the order of focus"


def test_a_dialog_gives_the_focus_back(cluster: Operated, browser: Browser) -> None:
    browser.open(cluster.console)
    browser.until("document.querySelector('#requests tr[data-request] a')")
    browser.js("document.querySelector('#requests tr[data-request] a').focus()")
    browser.press(Keys.ENTER)
    browser.until("document.querySelector('dialog[open] .waterfall')")
    assert browser.js("document.querySelector('dialog').contains(document.activeElement)")
    browser.press(Keys.ESCAPE)
    browser.until("document.activeElement.closest('tr[data-request]') !== null")


def test_a_narrow_phone_scrolls_down_only(cluster: Operated, browser: Browser) -> None:
    for width in (320, 768):
        browser.open(cluster.console, width=width, height=700)
        browser.until("document.querySelector('#requests tr[data-request] a')")
        page = browser.js("document.documentElement.scrollWidth")
        assert page <= width
        browser.js("document.querySelector('#requests tr[data-request] a').click()")
        browser.until("document.querySelector('dialog[open] .waterfall')")
        inside = browser.js(
            "(() => { const e = document.querySelector('dialog');"
            " return e.scrollWidth - e.clientWidth; })()"
        )
        assert inside <= 0


def test_dark_is_dark_and_readable(cluster: Operated, browser: Browser) -> None:
    colours = (
        "(() => { const s = getComputedStyle(document.documentElement); const c = (v) =>"
        " v.match(/[0-9.]+/g).slice(0, 3).map(Number);"
        " return [c(s.backgroundColor), c(s.color)]; })()"
    )
    found = []
    for dark in (False, True):
        browser.open(cluster.console, dark=dark)
        paper, ink = (luminance(colour) for colour in browser.js(colours))
        found.append(paper)
        contrast = (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05)
        assert contrast > 7
    light, dark_paper = found
    assert light > 0.8 and dark_paper < 0.05


def luminance(colour: list[float]) -> float:
    """Relative, by WCAG 2."""
    parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_nothing_jumps(cluster: Operated, browser: Browser) -> None:
    browser.open(cluster.console)
    browser.until("document.querySelector('#requests tr[data-request] a')")
    ask(browser, "What is 2 plus 3?")
    browser.until("document.querySelectorAll('#requests tr[data-request]').length > 2")
    assert browser.js("window.shifts") < MOST_SHIFT


def test_nothing_moves_for_those_who_do_not_want_it(cluster: Operated, browser: Browser) -> None:
    browser.open(cluster.console)
    duration = "getComputedStyle(document.querySelector('.meter .used')).transitionDuration"
    assert browser.until(duration) != "0s"
    less = {"name": "prefers-reduced-motion", "value": "reduce"}
    browser.tell("Emulation.setEmulatedMedia", features=[less])
    browser.until(f"{duration} === '0s'")


def test_a_replica_that_has_left_is_gone_and_then_no_more_there(
    cluster: Operated, browser: Browser
) -> None:
    """What a router says that has forgotten it; here a supervisor would start it again before."""
    browser.open(cluster.console)
    browser.until(f"{STATE} === 'up'", "decode-1")
    browser.driver.execute_script(WITHOUT_DECODE_1)
    browser.until(f"{STATE} === 'gone'", "decode-1")
    assert "decode-1 is gone" in browser.text("#said")
    browser.driver.execute_script("window.later = 60")
    browser.until("document.querySelector('[data-replica=decode-1]') === null")
    assert browser.js(STATE, "decode-0") == "up"


async def test_a_killed_worker_shows_and_comes_back(cluster: Operated, browser: Browser) -> None:
    browser.open(cluster.console)
    browser.until(f"{STATE} === 'up'", "decode-0")
    cluster.serving.kill("decode-0.json")
    browser.until(f"{STATE} === 'down'", "decode-0")
    assert "down" in browser.text("[data-replica=decode-0]")
    assert "1 of 2 replicas up" in browser.text("[data-pool=decode]")
    assert "decode-0" in browser.text("#said"), "screen readers hear of it"
    assert "is down" in browser.text("#events")
    await cluster.serving.all_up()
    browser.until(f"{STATE} === 'up'", "decode-0")


async def test_a_router_that_is_gone_is_said_and_found_again(
    cluster: Operated, browser: Browser
) -> None:
    browser.open(cluster.console)
    browser.until(f"{STATE} === 'up'", "decode-1")
    supervisor = cluster.serving.process.pid
    os.kill(supervisor, signal.SIGSTOP)  # else there may be another one before the page asks again
    try:
        cluster.serving.kill("-m router")
        browser.until("document.body.dataset.state === 'gone'")
        assert "does not answer" in browser.text("#gone")
        assert "does not answer" in browser.text("#said")
        assert "decode-1" in browser.text("#pools"), "what was known last stays readable"
    finally:
        os.kill(supervisor, signal.SIGCONT)
    await asyncio.wait_for(cluster.serving.all_up(), 60)
    browser.until("document.body.dataset.state === 'live'")
    assert browser.js("document.querySelector('#gone').hidden")
