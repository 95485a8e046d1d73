"""A headless Chromium, where there is one, and pages to open in it."""

import shutil

import pytest
import torch

from headwise import Encoder, EncoderConfig, Seq2Seq, Seq2SeqConfig
from headwise.heads import Report, draw, observe

UGLY = "</script><b id='x' onclick=\"x()\">'&amp;"


@pytest.fixture(scope="module")  # playwright runs once at a time, and other tests have a browser of their own
def browser():
    """Start Debian's Chromium; playwright would bring one of its own by a download."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def show(browser):
    """Open a file, and hold everything against it that it asks for or complains of."""
    problems, contexts = [], []

    def opened(path, at="", *, width=1000, scheme="light", before=""):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda asked: asked.url in (path.as_uri(), "about:srcdoc") or problems.append(asked.url))
        page.on("console", lambda said: problems.append(said.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        if before:
            page.add_init_script(before)
        page.goto(f"{path.as_uri()}{at}")
        page.wait_for_selector("html[data-ready], [role=alert]", state="attached")
        return page

    opened.expected = ""
    yield opened
    for context in contexts:
        context.close()
    told = [each for each in problems if not opened.expected or opened.expected not in each]
    assert not told


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """Write the page of an encoder on a short text, of which one word is hostile."""
    torch.manual_seed(3)
    encoder = Encoder(EncoderConfig(vocabulary=23, d_model=16, heads=2, layers=2, d_ff=16)).eval()
    return _written(encoder, ["one", UGLY, "three", "four", "five"], tmp_path_factory.mktemp("short"), about=UGLY)


@pytest.fixture(scope="session")
def long(tmp_path_factory):
    """Write the page of an encoder on a text that is coarser than words at first."""
    torch.manual_seed(3)
    encoder = Encoder(EncoderConfig(vocabulary=2309, d_model=16, heads=2, layers=1, d_ff=16)).eval()
    with torch.no_grad():
        encoder.layers[0].attention.query.weight.mul_(9)
    return _written(encoder, [f"w{i}" for i in range(2309)], tmp_path_factory.mktemp("long"))


def _written(encoder, words, folder, about=""):
    tokens_BT = torch.arange(len(words))[None]

    def call():
        return encoder(tokens_BT, torch.tensor([len(words)]))

    with torch.no_grad(), observe(encoder) as observer:
        call()
    drawing = draw(encoder, call, words, title=about, closer=1)
    report = Report(observer.table(), [drawing], about=about)
    report.write(folder / "heads.html")
    return folder / "heads.html", report


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Write the page of a model that reads and writes, before and after it lost a head."""
    torch.manual_seed(3)
    given = {"vocabulary": 23, "d_model": 16, "layers": 1, "d_ff": 16, "d_head": 8}
    tables, path = [], tmp_path_factory.mktemp("pair") / "heads.html"
    for heads in (2, ((1,),)):
        model = Seq2Seq(Seq2SeqConfig(EncoderConfig(**given, heads=heads))).eval()
        source_BK, target_BT = torch.arange(4, 11)[None], torch.arange(4, 8)[None]

        def call(model=model, source_BK=source_BK, target_BT=target_BT):
            return model(source_BK, torch.tensor([7]), target_BT, torch.tensor([4]))

        with torch.no_grad(), observe(model) as observer:
            call()
        tables.append(observer.table())
    drawing = draw(model, call, [f"s{i}" for i in range(7)], target=[f"t{i}" for i in range(4)], written=1)
    Report(tables[1], [drawing], before=tables[0]).write(path)
    return path, drawing
