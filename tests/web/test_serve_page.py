"""The page in a browser, as people use it: Debian's Chromium, driven by playwright."""

import os
import shutil
from importlib.resources import files

import pytest
import torch

from tests.web.conftest import tiny_writer, written
from tests.web.processes import Service

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

TEXT = "the ending is lovely but the rest is cold"
SIZES = {"wide": {"width": 1200, "height": 900}, "phone": {"width": 360, "height": 740}}


@pytest.fixture(scope="module")
def service(folder):
    with Service(folder) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, service):
    """Open the page; what its console says must be nothing."""
    contexts, problems = [], []

    def opening(**settings):
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{service.port}/")
        page.wait_for_selector("td button")
        return page

    opening.expected = ""
    yield opening
    for context in contexts:
        context.close()
    assert [told for told in problems if not opening.expected or opening.expected not in told] == []


def typed(page, text=TEXT):
    page.fill("#text", text)
    page.wait_for_selector("#words button")
    page.wait_for_selector('#state[data-state="done"]')
    return page


def shares(page):
    return page.locator(".bar .number").all_inner_texts()


def keep(page, name):
    """Keep a picture where `HEADWISE_PICTURES` names a folder."""
    if folder := os.environ.get("HEADWISE_PICTURES"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_what_is_typed_is_answered(opened):
    page = typed(opened())
    assert len(shares(page)) == 2
    assert page.locator("#words button").all_inner_texts() == TEXT.split()
    page.hover("#words button >> nth=3")
    assert "lovely" in page.inner_text("#word-told")
    assert page.locator("td button.looked").count() == 1
    keep(page, "sentiment")


def test_a_head_that_is_switched_off_changes_the_answer(opened):
    page = typed(opened())
    before = shares(page)
    page.click("td button >> nth=1")
    page.wait_for_function("before => document.querySelector('.bar .number').textContent !== before", arg=before[0])
    assert page.get_attribute("td button >> nth=1", "aria-pressed") == "false"
    page.click("#all-on")
    page.wait_for_function("before => document.querySelector('.bar .number').textContent === before", arg=before[0])


@pytest.mark.parametrize("task", ["translation", "summarization"])
def test_what_a_writer_writes_changes_with_its_heads(browser, tmp_path, task):
    with Service(written(tiny_writer(task), tmp_path / task)) as writing:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{writing.port}/")
        page.wait_for_selector("td button")
        page.fill("#text", TEXT)
        page.wait_for_selector("#answer .written:not(:empty)")
        before = page.inner_text("#answer .written")
        for i in range(page.locator("td button").count()):
            page.click(f"td button >> nth={i}")
        page.wait_for_function(
            "before => document.querySelector('#answer .written')?.textContent !== before", arg=before
        )
        keep(page, task)
        page.click("#all-on")
        page.wait_for_function(
            "before => document.querySelector('#answer .written')?.textContent === before", arg=before
        )
        page.close()


def test_the_keyboard_does_it_all(opened):
    page = opened()
    page.focus("#text")
    page.keyboard.type(TEXT)
    page.wait_for_selector("#words button")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('td button')"):
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "1"
    page.keyboard.press("Space")
    focused = "document.activeElement.getAttribute('aria-pressed')"
    assert page.evaluate(focused) == "false"
    page.wait_for_selector("#queries button")


def test_one_head_shows_where_it_looks(opened):
    page = typed(opened())
    page.hover("td button >> nth=0")
    page.wait_for_selector("#queries button")
    page.hover("#queries button >> nth=2")
    assert page.inner_text("#link-told").startswith("From “is” it looks at ")
    # The map of a short text has a square of one colour for each pair of tokens, and nothing between them.
    count = page.evaluate("document.querySelectorAll('#queries button').length")
    pixels = page.evaluate("""() => {
      const map = document.querySelector("#map");
      return [...map.getContext("2d").getImageData(0, 0, map.width, map.height).data];
    }""")
    side = page.evaluate("document.querySelector('#map').width")
    drawn = torch.tensor(pixels).view(side, side, 4)
    squares = [drawn[a + 2 : a + side // count - 2] for a in (i * side // count for i in range(count))]
    assert all((rows == rows[:1]).all() for rows in squares)
    assert drawn.flatten(0, 1).unique(dim=0).shape[0] > count
    assert page.is_disabled("#closer")
    page.fill("#text", " ".join([TEXT] * 3))
    page.wait_for_selector("#closer:enabled")
    page.click("#closer")
    page.wait_for_selector('#map[aria-label*="zoom 1"]')


def test_newer_answers_win(opened):
    page = opened()
    for end in range(1, len(TEXT)):
        page.fill("#text", TEXT[:end])
    page = typed(page, "lovely")
    page.wait_for_selector("#words button:only-child")


def test_the_page_speaks_chinese(opened):
    page = typed(opened(locale="zh-CN"), "等了两个小时才上菜")
    assert page.inner_text("#ask-title") == "文字"
    assert page.locator("#words button").count() == 9
    page.click("#language")
    assert page.inner_text("#ask-title") == "Text"


def test_what_is_wrong_is_told(opened, service):
    page = opened()
    page.fill("#text", "a" * 20_001)
    page.wait_for_selector('#state[data-state="problem"]')
    assert "at most 20000 characters" in page.inner_text("#state")
    opened.expected = "status of 422"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, size, scheme):
    page = typed(opened(viewport=SIZES[size], color_scheme=scheme))
    page.click("td button >> nth=1")
    page.hover("#words button >> nth=3")
    page.wait_for_selector("#queries button")
    keep(page, f"{size}-{scheme}")
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    told = [(each["id"], each["impact"], [node["html"] for node in each["nodes"]][:3]) for each in found]
    assert [each for each in told if each[1] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it does not fit"
