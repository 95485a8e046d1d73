"""The page in a browser, as people use it: Debian's Chromium, driven by playwright."""

import datetime as dt
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


class Late:
    """Open a page anew with a clock that stands, and hold back the first answer to a path; later ones are refused."""

    def __init__(self, page, path):
        self.page, self.held = page, []
        page.clock.install()
        page.clock.pause_at(dt.datetime.now() + dt.timedelta(hours=1))
        page.route(f"**{path}", self._hold)
        page.reload()

    def _hold(self, route):
        if self.held:
            return route.fulfill(status=422, json={"detail": "It was refused."})
        return self.held.append(route)

    def begin(self):
        """Let timers ring, and wait until something is asked that can be held."""
        self.page.clock.run_for(400)
        for _ in range(1000):
            if self.held:
                return
            self.page.wait_for_timeout(10)
        raise AssertionError("nothing was asked")

    def come(self):
        """Let the answer come, and the page hear it."""
        self.held[0].fulfill(response=self.held[0].fetch())
        self.page.evaluate("fetch('/health').then((answer) => answer.text())")


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
    page.evaluate("for (let i = 0; i < 3; i++) document.querySelector('#right').click()")  # before the first answer
    page.wait_for_selector('#map[aria-label*="tile 0, 1"]')
    assert page.locator('#state[data-state="problem"]').count() == 0


def test_newer_answers_win(opened):
    page = opened()
    for end in range(1, len(TEXT)):
        page.fill("#text", TEXT[:end])
    page = typed(page, "lovely")
    page.wait_for_selector("#words button:only-child")


def shown(page):
    """Give what stands where answers are shown."""
    return [page.inner_text(f"#{part}") for part in ("state", "answer", "words", "queries")]


def test_an_emptied_text_stays_without_words(opened):
    page = opened()
    late = Late(page, "/v1/explain")
    page.wait_for_selector("td button")
    page.fill("#text", TEXT)
    late.begin()
    page.fill("#text", "")
    page.clock.run_for(150)
    late.come()
    assert shown(page) == ["", "Nothing yet.", "", ""]


def test_a_late_map_keeps_the_name_of_its_head(opened):
    opened.expected = "status of 422"
    page = opened()
    late = Late(page, "/v1/view")
    page.wait_for_selector("td button")
    page.fill("#text", TEXT)
    page.clock.run_for(400)
    page.wait_for_selector('#state[data-state="done"]')
    page.hover("td button >> nth=0")
    late.begin()
    page.hover("td button >> nth=1")
    late.come()
    page.wait_for_selector("#queries button")
    assert page.inner_text("#view-head") == "layer 1 head 0"
    assert "layer 1 head 0" in page.get_attribute("#map", "aria-label")
    page.clock.run_for(150)
    page.wait_for_selector('#state[data-state="problem"]')
    assert page.inner_text("#view-head") == "layer 1 head 0"


def _with_a_writer(route):
    answer = route.fetch()
    told = answer.json()
    told["models"].append({**told["models"][0], "name": "writer", "task": "translation"})
    route.fulfill(response=answer, json=told)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/explain", "/v1/view"])
def test_what_another_model_answers_late_is_not_shown(opened, path):
    page = opened()
    page.route("**/v1/models", _with_a_writer)
    late = Late(page, path)
    page.wait_for_selector("#model option >> nth=1", state="attached")
    page.fill("#text", TEXT)
    page.hover("td button >> nth=0")
    late.begin()
    page.select_option("#model", "writer")
    late.come()
    assert shown(page) == ["", "Nothing yet.", "", ""]


def test_another_language_changes_words_only(opened):
    page = typed(opened())
    page.click("td button >> nth=1")
    page.hover("td button >> nth=0")
    page.wait_for_selector("#queries button")
    page.wait_for_selector('#state[data-state="done"]')
    before = shares(page)
    page.click("#language")
    off = page.locator('td button[aria-pressed="false"]')
    assert [off.nth(i).get_attribute("aria-label") for i in range(off.count())] == ["第 1 层第 1 头"]
    assert page.inner_text("#count") == "4 个头中关掉了 1 个。"
    assert page.inner_text("#view-head") == "第 1 层第 0 头"
    assert page.inner_text("#state").startswith("用时")
    assert "第 1 层第 0 头" in page.get_attribute("#map", "aria-label")
    assert page.locator("#words button").all_inner_texts() == TEXT.split()
    assert shares(page) == before


def test_the_page_waits_for_its_models(opened):
    page = opened()
    late = Late(page, "/v1/models")
    late.begin()
    page.fill("#text", TEXT)
    page.click("#language")
    page.clock.run_for(500)
    assert page.inner_text("#state") == ""
    page.fill("#text", "")
    page.clock.run_for(500)
    page.fill("#text", TEXT)
    late.come()
    page.wait_for_selector("td button")
    page.clock.run_for(500)
    page.wait_for_selector("#words button")
    assert page.locator("#words button").all_inner_texts() == TEXT.split()


def test_several_tokens_of_one_letter_share_its_button(opened):
    found = opened().evaluate("""async () => {
      const { showView } = await import("/page/heads.js");
      const [queries, keys, line] = ["div", "div", "p"].map((kind) => document.createElement(kind));
      const spans = [[0, 0], [0, 1], [0, 1], [0, 1], [1, 2], [2, 3]];
      const links = spans.map(() => [{ key: 2, weight: 0.25 }, { key: 3, weight: 0.25 }, { key: 5, weight: 0.5 }]);
      showView({ queries: spans, keys: spans, links }, {}, { text: "等ab", queries, keys, line });
      queries.querySelector("button").click();
      return [...keys.querySelectorAll("button")].map((each) => [each.textContent, each.style.backgroundColor]);
    }""")
    assert [letter for letter, _ in found] == ["等", "a", "b"]
    assert found[0][1] == found[2][1] != found[1][1] == ""


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


def test_a_service_that_is_gone_is_told_apart_from_a_fault_of_the_page(opened):
    page, state = opened(), '#state[data-state="problem"]'
    opened.expected = "Failed to load resource"
    page.route("**/v1/predict", lambda route: route.abort())
    page.fill("#text", TEXT)
    page.wait_for_selector(state)
    assert page.inner_text(state) == "The service does not answer. Is it still running?"
    page.unroute("**/v1/predict")
    page.route("**/v1/predict", lambda route: route.fulfill(status=502, body="<html>Bad gateway</html>"))
    page.fill("#text", TEXT[:20])
    page.wait_for_selector(f"{state} >> text=The service does not answer.")
    page.unroute("**/v1/predict")
    page.route("**/v1/predict", lambda route: route.fulfill(json={}))
    page.fill("#text", f"{TEXT} again")
    page.wait_for_selector(f"{state} >> text=TypeError")


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
