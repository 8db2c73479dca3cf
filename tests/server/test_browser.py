"""The live page in a real Chromium, on a real server with an API key."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import StaleElementReferenceException

from tests.server.browsing import chromium, complaints, look, picture
from tests.server.running import KEY, MODEL, ServerUnderTest, serving, wait_for

pytest.importorskip("vllm")

COMMAND = "kvserve serve mini --max-model-len 8192 --kv-resident-tokens 4096 --num-gpu-blocks-override 160".split()
COLUMNS = ["full", "snapkv:0.25", "streaming:0.25", "scissorhands:0.25"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:  # first: it is quick to skip without one
        yield running


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    with serving(tmp_path_factory.mktemp("server") / "log", COMMAND) as running:
        yield running


@pytest.fixture
def page(browser: Any, server: ServerUnderTest) -> Iterator[Any]:
    """The page with the key given, and no complaint in the console when the test ends."""
    look(browser, "light", 1280, 1000)
    browser.get(server.url + "/kv")
    browser.execute_script("sessionStorage.setItem('kvserve-key', arguments[0])", KEY)
    browser.refresh()
    wait_for(lambda: len(all_of(browser, ".column")) == 4)
    yield browser
    assert complaints(browser) == []


def one(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def all_of(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", selector)
    return found


def texts(browser: Any, selector: str) -> list[str]:
    """Again if the page has replaced one of the elements meanwhile."""
    while True:
        with suppress(StaleElementReferenceException):
            return [element.text for element in all_of(browser, selector)]


def states(browser: Any) -> list[str]:
    return [column.get_attribute("data-state") for column in all_of(browser, ".column")]


def fill(browser: Any, selector: str, value: str) -> None:
    element = one(browser, selector)
    element.clear()
    element.send_keys(value)


def never_stop(browser: Any) -> None:
    """Let the page's answers run to their full length: the model's own end may come before a slow test acts."""
    browser.execute_script(
        """const send = window.fetch;
           window.fetch = (url, options) => send(url, options?.body
             ? {...options, body: JSON.stringify({...JSON.parse(options.body), ignore_eos: true})} : options)"""
    )


def run(browser: Any) -> None:
    one(browser, "#run").click()
    wait_for(lambda: one(browser, "#progress").text != "Running", 60)


def test_the_key_is_asked_for(browser: Any, server: ServerUnderTest) -> None:
    browser.get(server.url + "/kv")
    wait_for(lambda: one(browser, "#key").is_displayed())
    assert one(browser, "#status").text == "locked"
    fill(browser, "#key-value", "wrong")
    one(browser, "#key-form button").click()
    wait_for(lambda: one(browser, "#key-text").text == "The server did not accept this key.")
    fill(browser, "#key-value", KEY)
    one(browser, "#key-form button").click()
    wait_for(lambda: one(browser, "#status").text == "live")
    assert one(browser, "#model").text == MODEL
    assert not one(browser, "#key").is_displayed()
    assert browser.execute_script("return sessionStorage.getItem('kvserve-key')") == KEY
    assert complaints(browser) == []


def test_four_policies_stream_side_by_side(page: Any, server: ServerUnderTest) -> None:
    chosen = [column.find_elements("css selector", "select, .budget") for column in all_of(page, ".column")]
    shown = [":".join(filter(None, (field.get_property("value") for field in pair))) for pair in chosen]
    assert shown == COLUMNS
    page.execute_script(  # how many columns were streaming whenever one of them had new text
        """window.together = []; new MutationObserver(() => together.push(
             document.querySelectorAll('.column[data-state=running]').length
           )).observe(document.getElementById('columns'), {subtree: true, childList: true})"""
    )
    run(page)
    assert states(page) == ["done"] * 4
    together = page.execute_script("return window.together")
    assert together.count(4) >= 3, "all four were seen at work, and their texts grew"
    question = [{"role": "user", "content": one(page, "#prompt").get_property("value")}]
    answers = [
        server.client.chat.completions.create(
            model=MODEL, messages=question, max_tokens=128, temperature=0, extra_body={"kv_policy": policy}
        )
        for policy in COLUMNS
    ]
    assert texts(page, ".answer") == [answer.choices[0].message.content for answer in answers]
    assert texts(page, ".answer")[0] == "The code for gentle kitten is 3037."
    for column, answer in zip(all_of(page, ".column")[1:], answers[1:], strict=True):
        cache = answer.usage.kv_cache  # type: ignore[union-attr]
        expected = f"{round(cache['kept_tokens']):,} of {cache['logical_tokens']:,} tokens"
        assert one(column, "[data-of=kept]").text == expected
        assert one(column, "[data-of=bytes]").text.endswith("MiB")
    assert all(text.endswith(("ms", "s")) for text in texts(page, "[data-of=first]"))
    # A short answer that arrives in one piece has no speed; on a busy machine some do.
    speeds = [text.removesuffix(" tokens/s") for text in texts(page, "[data-of=speed]") if text != "–"]
    assert speeds and all(float(speed) > 1 for speed in speeds)


def test_what_differs_from_the_first_column_is_marked(page: Any) -> None:
    run(page)
    first, *others = texts(page, ".answer")
    for text, column in zip(others, all_of(page, ".column")[1:], strict=True):
        marked, verdict = "".join(texts(column, "mark")), one(column, ".verdict").text
        assert verdict == "same as full" if text == first else verdict.startswith("differs from full after")
        assert text.endswith(marked) and first.startswith(text[: len(text) - len(marked)])
        assert bool(marked) == (text != first)


def test_cancel_ends_the_requests_in_the_engine(page: Any, server: ServerUnderTest) -> None:
    before = server.stats()["policies"].get("full", {}).get("requests", 0)
    never_stop(page)
    fill(page, "#prompt", "Line 11: marble reef. Tell me more")
    fill(page, "#length", "6000")
    one(page, "#run").click()
    wait_for(lambda: server.stats()["requests_running"] == 4)
    wait_for(lambda: len(all_of(page, "#running tr")) == 4)
    one(page, "#cancel").click()
    wait_for(lambda: one(page, "#progress").text == "Cancelled")
    assert states(page) == ["cancelled"] * 4
    assert texts(page, ".verdict") == ["cancelled"] * 4
    wait_for(lambda: server.stats()["running"] == [])
    assert server.stats()["resident_bytes"] == 0
    assert server.stats()["policies"]["full"]["requests"] == before + 1
    wait_for(lambda: one(page, "#running-empty").is_displayed())
    assert one(page, "#run").is_enabled() and not one(page, "#cancel").is_enabled()


def test_running_requests_are_those_that_run(page: Any, server: ServerUnderTest) -> None:
    """The list against what three clients sent, and rows that shrink while their requests grow."""
    sent = ["snapkv:0.5", "full", "streaming:64"]
    clients = [
        threading.Thread(target=server.complete, args=(list(range(10, 700)), policy), kwargs={"max_tokens": 1500})
        for policy in sent
    ]
    for client in clients:
        client.start()
    wait_for(lambda: sorted(texts(page, "#running .policy")) == sorted(sent))
    assert one(page, "#running-count").text == "3"
    stats = server.stats()
    listed = {f"{r['policy']}:{r['budget']}".removesuffix(":None"): r for r in stats["running"]}
    assert sorted(listed) == sorted(sent)
    assert sum(r["resident_bytes"] for r in stats["running"]) == stats["resident_bytes"]
    assert all(690 <= r["logical_tokens"] < 2190 and r["stage"] == "decode" for r in listed.values())
    assert listed["full"]["kept_tokens"] == listed["full"]["logical_tokens"]
    assert listed["streaming:64"]["kept_tokens"] < listed["snapkv:0.5"]["kept_tokens"] < 2190
    wait_for(lambda: any(" of " in text for text in texts(page, "#running .tokens")))
    for client in clients:
        client.join()
    wait_for(lambda: texts(page, "#running .policy") == [])
    assert {"full", "snapkv", "streaming"} <= set(texts(page, "#policies th"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (".budget", "0", "kv_policy.budget"),
        (".budget", "much", "is not a budget"),
        (".parameters", '{"nope": 1}', "kv_policy.nope is not a parameter of 'snapkv'"),
        (".parameters", "{", "not JSON"),
    ],
)
def test_errors_are_shown_where_they_belong(page: Any, field: str, value: str, message: str) -> None:
    column = all_of(page, ".column")[1]
    if field == ".parameters":
        one(column, "summary").click()
    fill(column, field, value)
    run(page)
    assert states(page) == ["done", "failed", "done", "done"]
    assert message in one(column, ".error").text
    assert one(page, "#progress").text == "1 failed"
    browser_log = [text for text in complaints(page) if "400 (Bad Request)" not in text]
    assert browser_log == []


def test_parameters_reach_the_server(page: Any) -> None:
    column = all_of(page, ".column")[2]
    one(column, "summary").click()
    fill(column, ".budget", "200")
    fill(column, ".parameters", '{"decode": false}')
    run(page)
    assert one(column, ".error").text == ""
    kept = int(one(column, "[data-of=kept]").text.split()[0].replace(",", ""))
    assert 200 <= kept < 200 + 128 + 1


def test_policies_that_cannot_run_say_why(page: Any) -> None:
    option = one(page, ".column option[value=ksa]")
    assert not option.is_enabled()
    assert "--kv-groups" in option.get_attribute("title")


def test_columns_come_and_go(page: Any) -> None:
    assert not one(page, "#add").is_enabled()
    for left in (3, 2, 1):
        one(page, ".column .remove").click()
        assert len(all_of(page, ".column")) == left
    assert not one(page, ".column .remove").is_enabled()
    one(page, "#add").click()
    assert len(all_of(page, ".column")) == 2


def test_the_keyboard_is_enough(page: Any) -> None:
    from selenium.webdriver import Keys

    one(page, "#prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    wait_for(lambda: states(page) == ["done"] * 4, 60)
    reached = set()
    for _ in range(80):
        page.switch_to.active_element.send_keys(Keys.TAB)
        focus = page.switch_to.active_element
        reached |= {focus.get_attribute("id"), *focus.get_attribute("class").split(), focus.tag_name}
    assert {"sample", "length", "prompt", "name", "budget", "summary", "answer", "remove", "run", "scroll"} <= reached


def test_everything_to_operate_has_a_name(page: Any) -> None:
    tree = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "combobox", "textbox", "spinbutton", "region", "image", "table"}
    nodes = [n for n in tree if not n["ignored"] and n.get("role", {}).get("value") in roles - {"table"}]
    assert len(nodes) > 20
    assert [n["role"]["value"] for n in nodes if not n.get("name", {}).get("value", "").strip()] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 800, 390])
def test_looks(page: Any, tmp_path: Path, scheme: str, width: int) -> None:
    """Nothing sticks out, text is readable (WCAG's 4.5 : 1), and the picture is not empty."""
    look(page, scheme, width, 900)
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    ratios = {selector: contrast(page, selector) for selector in ("h1", ".muted", ".column .idea", "#run", "thead th")}
    assert min(ratios.values()) >= 4.5, ratios
    light = page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(246, 246, 244)"
    assert light == (scheme == "light")
    assert len(picture(page, tmp_path / f"{scheme}-{width}.png")) > 20_000


def contrast(page: Any, selector: str) -> float:
    """Of an element's text against the nearest background behind it."""
    colours = page.execute_script(
        """let e = document.querySelector(arguments[0]), text = getComputedStyle(e).color, back;
           do back = getComputedStyle(e).backgroundColor; while (/, 0\\)$/.test(back) && (e = e.parentElement));
           return [text, back].map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number))""",
        selector,
    )
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
