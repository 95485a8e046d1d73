"""The report in a browser: it opens from disk, asks for nothing, works by keyboard, and tells the true numbers."""

import re

import pytest

from headwise.recipes.tour import tour
from tests.page.conftest import UGLY

pytestmark = pytest.mark.slow

HEAD = "#now/layers.0.attention.attend/1"


def shares(text):
    """Read the percentages of a line."""
    return [float(number) / 100 for number in re.findall(r"([\d.]+) %", text)]


def headed(page, text):
    """Wait for a heading: an address that changes is followed a moment later."""
    page.get_by_role("heading", level=1, name=text, exact=True).wait_for()


def test_the_overview_leads_to_a_head_by_keyboard(show, short):
    page = show(short[0])
    page.locator(".heads button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("layer 1, head 1, ")
    page.keyboard.press("Enter")
    headed(page, "Layer 1, head 1")
    assert page.title() == "Layer 1, head 1"
    page.get_by_role("button", name="next head").click()
    headed(page, "Layer 0, head 0")
    page.go_back()
    page.get_by_role("button", name="All heads").click()
    headed(page, "Heads")


def test_the_table_sorts_and_the_grid_takes_its_colour_from_any_statistic(show, short):
    page = show(short[0])
    page.get_by_role("button", name="peak", exact=True).click()
    heading = page.locator("th", has_text="peak")
    assert heading.get_attribute("aria-sort") == "descending"
    column = [float(text) for text in page.locator(".rows tbody td:nth-child(5)").all_inner_texts()]
    assert column == sorted(column, reverse=True)
    colours = "[...document.querySelectorAll('.heads button')].map((each) => each.style.background)"
    before = page.evaluate(colours)
    page.get_by_label("Colour by").select_option("distance")
    assert page.locator(".heads button").first.get_attribute("aria-label").find("distance") > 0
    assert page.evaluate(colours) != before


def test_the_map_reads_out_true_weights(show, short):
    path, report = short
    weights = report.drawings[0].pictures[0].map_HPN[1]
    page = show(path, HEAD)
    canvas = page.get_by_role("application")
    canvas.focus()
    for _ in range(5):
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    told = page.locator("canvas >> xpath=ancestor::div[1] >> .readout").inner_text()
    assert told.startswith("“three” (3) → “one” (1): ")
    assert shares(told)[0] == pytest.approx(float(weights[2, 0]), abs=float(weights.max()) / 255 + 6e-4)
    page.get_by_text("The strongest cells as a table").click()
    page.wait_for_selector("details[open] tbody tr >> nth=24", state="attached")
    assert page.locator("details[open] tbody tr").count() == 25


def test_the_links_of_a_word_are_said_and_drawn(show, short):
    path, report = short
    picture = report.drawings[0].pictures[0]
    page = show(path, HEAD)
    assert page.locator(".linked path").count() > 0
    page.locator(".tokens li").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    told = page.locator(".linked + .readout").inner_text()
    assert told.startswith("“three” (3) looks at ")
    wanted = picture.every_weight_HQL[1, 2].tolist()
    assert shares(told) == pytest.approx(wanted, abs=0.011)
    assert page.locator(".tokens li.to").count() == 3


def test_a_long_text_is_zoomed_into_down_to_words(show, long):
    path, report = long
    ((place, head),) = report.drawings[0].closer
    page = show(path, f"#now/{place}/{head}")
    choose = page.locator("label", has_text="Show").locator("select")
    sizes = choose.locator("option").all_inner_texts()
    assert [re.search(r"\((\d+)", text)[1] for text in sizes[:2]] == ["58", "231"]
    assert sum("token by token" in text for text in sizes) == 3
    page.get_by_role("application").focus()
    for _ in range(9):
        page.keyboard.press("+")
    assert "token by token" in choose.locator("option:checked").inner_text()
    told = page.locator("canvas >> xpath=ancestor::div[1] >> .readout").inner_text()
    assert re.fullmatch(r"“w\d+” \([\d,]+\) → “w\d+” \([\d,]+\): [\d.]+ % of its attention", told)
    for _ in range(12):
        page.keyboard.press("-")
    assert choose.input_value() == "0"


def test_a_long_text_is_paged_through(show, long):
    path, report = long
    ((place, head),) = report.drawings[0].closer
    page = show(path, f"#now/{place}/{head}")
    assert page.locator(".tokens li").count() == 160
    page.get_by_label("first word shown").fill("2000")
    page.keyboard.press("Enter")
    assert page.locator(".tokens li").first.inner_text() == "w1999"
    page.locator(".spots button").first.click()
    page.wait_for_selector(".tokens li:focus")
    assert page.locator(".tokens li.from").count() == 1


def test_a_broken_address_leads_to_the_overview(show, short):
    page = show(short[0], "#%")
    headed(page, "Heads")
    page = show(short[0], HEAD)
    page.evaluate("location.hash = '#%E0'")
    headed(page, "Heads")


def test_texts_stay_texts(show, short):
    page = show(short[0], HEAD)
    assert page.locator("#x").count() == 0
    assert page.locator(".tokens li").nth(1).inner_text() == UGLY
    page.get_by_role("button", name="All heads").click()
    headed(page, "Heads")
    assert UGLY in page.locator("main").inner_text()


def test_cross_attention_and_what_was_cut(show, pair):
    path, drawing = pair
    page = show(path)
    assert page.locator(".gone").count() == 3
    assert page.locator("table.rows").count() == 2
    page = show(path, "#now/decoder.layers.0.cross_attention.attend/0")
    assert page.locator(".part").all_inner_texts() == ["from the target", "to the source"]
    assert page.locator(".tokens li.written").all_inner_texts() == ["t1", "t2", "t3"]
    page.locator(".tokens li").first.focus()
    told = page.locator(".linked + .readout").inner_text()
    best = int(drawing.pictures[2].every_key_HQL[0, 0, 0])
    assert told.startswith(f"“t0” (1) looks at “s{best}” ({best + 1}) ")
    assert "before" in page.locator("dl").inner_text()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1400, "light")])
def test_it_fits_phones_and_the_dark(show, short, width, scheme):
    for at in ("", HEAD):
        page = show(short[0], at, width=width, scheme=scheme)
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_browser_that_cannot_unpack_says_so(show, short, tmp_path):
    path, report = short
    show.expected = "This browser cannot unpack"
    page = show(path, before="delete window.DecompressionStream")
    assert "deflated=False" in page.get_by_role("alert").inner_text()
    report.write(tmp_path / "plain.html", deflated=False)
    page = show(tmp_path / "plain.html", before="delete window.DecompressionStream")
    assert page.locator(".heads button").count() == 4


def test_a_notebook_frame_shows_the_page(show, short, tmp_path):
    path = tmp_path / "notebook.html"
    frame = short[1]._repr_html_()
    path.write_text(f"<!doctype html><html data-ready><body>{frame}</body></html>", encoding="utf-8")
    inner = show(path).frame_locator("iframe")
    inner.locator(".heads button").nth(2).click()
    headed(inner, "Layer 1, head 0")
    inner.get_by_role("button", name="All heads").click()
    headed(inner, "Heads")


def test_the_tour_follows_a_word_and_a_head(show, tmp_path):
    walked = tour("The animal, it was tired.", "random")
    walked.write(tmp_path / "tour.html")
    page = show(tmp_path / "tour.html", width=400)
    page.get_by_role("radio", name="it", exact=True).click()
    page.get_by_role("radio", name="head 2").click()
    page.keyboard.press("ArrowRight")
    assert page.locator("caption").inner_text() == "Head 3: where “it” looks"
    weights = [float(text.removesuffix(" %")) / 100 for text in page.locator("tbody td:nth-child(4)").all_inner_texts()]
    assert weights == pytest.approx(walked.weights_HTT[3, 3].tolist(), abs=6e-4)
    scores = [float(text) for text in page.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert scores == pytest.approx(walked.score_HTT[3, 3].tolist(), abs=6e-3)


@pytest.mark.parametrize("sentence", ["a 喜欢 b", "naïve 𠮷𠮷𠮷"])
def test_the_tour_opens_at_the_word_that_its_lines_follow(show, tmp_path, sentence):
    walked = tour(sentence, "random")
    walked.write(tmp_path / "tour.html")
    word = show(tmp_path / "tour.html").locator(".tokens .chosen").first.inner_text()
    assert list(walked.lines())[1].startswith(f"1  words to vectors   {word} = ")
