"""The report on heads at 30 and at 30,000 tokens: how long drawing takes, and how large and quick the page is.

The model is a random encoder and the text random words, which no packing makes smaller; time and size do not depend on
what a model has learned. The page is opened in headless Chromium where playwright and Chromium are installed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import begin, number, options
from headwise import Encoder, EncoderConfig
from headwise.heads import Report, draw, observe

MOST_BYTES = 6_000_000
"""The bar for a page of 30,000 tokens."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=8)
    chosen = parser.parse_args()
    report = begin("The report on heads", chosen)
    layers, heads = (1, 2) if chosen.quick else (chosen.layers, chosen.heads)
    config = EncoderConfig(vocabulary=30_000, d_model=32 * heads, heads=heads, layers=layers, positions="rotary")
    encoder = Encoder(config).eval()
    report.section(f"{layers} layers of {heads} heads, float32; four heads drawn closer")
    report.table("tokens", "model s", "drawing s", "page MB", "deflated %", "opening s", "a head s")
    for length in (30, 900) if chosen.quick else (30, 30_000):
        report.row(*measured(encoder, length))


def measured(encoder: Encoder, length: int) -> Iterator[str | float | None]:
    """Yield the cells of a row."""
    tokens_BT = torch.randint(30_000, (1, length))
    words = [f"word{id_}" for id_ in tokens_BT[0].tolist()]

    def call() -> object:
        return encoder(tokens_BT, torch.tensor([length]))

    yield f"{length:,}"
    with torch.inference_mode():
        call()
        alone, _ = timed(call)
        drawing_time, drawing = timed(lambda: draw(encoder, call, words))
        with observe(encoder) as observer:
            encoder(tokens_BT[:, :300], torch.tensor([min(length, 300)]))
    page = Report(observer.table(), [drawing])
    yield from (alone, drawing_time)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "heads.html"
        page.write(path)
        size = path.stat().st_size
        assert size < MOST_BYTES, f"a page must stay below {MOST_BYTES:,} bytes; got {size:,}"
        yield from (size / 1e6, number(100 * size / len(page.to_html(deflated=False))))
        yield from opening(path, *drawing.closer[0])


def timed(call: Any) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def opening(path: Path, place: str, head: int) -> tuple[float | None, float | None]:
    """Measure the seconds until the overview stands, and until the page of a head does; the best of three."""
    chromium = shutil.which("chromium")
    if find_spec("playwright") is None or chromium is None:
        return None, None
    with browsing(chromium) as browser:
        took = [[opened(browser, path.as_uri() + at) for _ in range(3)] for at in ("", f"#now/{place}/{head}")]
    return min(took[0]), min(took[1])


@contextmanager
def browsing(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser: Any, address: str) -> float:
    page = browser.new_page()
    begun = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached")
    took = time.perf_counter() - begun
    page.close()
    return took


if __name__ == "__main__":
    main()
