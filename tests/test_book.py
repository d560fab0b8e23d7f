"""The book, made once from this repository: no dead link or picture, and every page as a real browser shows it.

The checks of files run wherever Sphinx is installed. The browser is Chromium: the one that the variable CHROMIUM names,
or one on the path.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
PHONE = {"width": 390, "height": 844}  # CSS pixels
READABLE = 4.5  # contrast of text, WCAG 2.1, level AA
NEEDED = ("sphinx", "myst_nb", "sphinx_design", "furo")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

missing = [name for name in NEEDED if find_spec(name) is None]
no_browser = (
    "playwright is not installed: pages are not tried in a browser"
    if find_spec("playwright") is None
    else "no Chromium here (chromium, chromium-browser, google-chrome, or CHROMIUM): pages are not tried in a browser"
    if not CHROMIUM
    else ""
)
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:.*MystReferenceResolver.app.*"),  # myst-parser's own, with Sphinx 9
    pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: the book is not made"),
]
in_browser = pytest.mark.skipif(bool(no_browser), reason=no_browser)

CONTRAST = """() => {
  const channel = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c[3] === 1) return c;
    }
    return [255, 255, 255, 1];
  };
  const ratio = element => {
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const shown = [...document.querySelectorAll("article p, article td, article th, article li, article pre, article dt")]
    .filter(e => e.textContent.trim() && e.checkVisibility()).slice(0, 60);
  return {background: getComputedStyle(document.body).backgroundColor,
          lowest: Math.min(21, ...shown.map(ratio))};
}"""
WIDE = """() => {
  const width = document.documentElement.clientWidth;
  const inside = e => { for (let p = e.parentElement; p; p = p.parentElement)
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(p).overflowX)) return true; return false; };
  return {page: document.documentElement.scrollWidth - width,
          wide: [...document.querySelectorAll("article *")]
            .filter(e => e.getBoundingClientRect().right > width + 1 && !inside(e))
            .slice(0, 3).map(e => e.outerHTML.slice(0, 120))};
}"""
PICTURES = """() => [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src)"""


class Reader(HTMLParser):
    """The links, anchors and pictures of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {"", "top"}
        self.pictures: list[dict[str, str | None]] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := found.get(key))}
        if tag == "a" and "href" in found:
            self.links.append(found["href"] or "")
        if tag == "img":
            self.pictures.append(found)
        if tag in ("img", "script", "source", "iframe") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(found["href"] or "")


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> dict:
    """The book's folder and what was wrong: made by the first worker that asks, waited for by the others."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with FileLock(shared / "book.lock"):
        told = shared / "book.json"
        if not told.exists():
            from fl_utils.book import site

            built = site.build(ROOT, shared / "book")
            told.write_text(json.dumps({"html": str(built.index.parent), "problems": built.problems}))
        return json.loads(told.read_text())


@pytest.fixture(scope="session")
def html(book) -> Path:
    return Path(book["html"])


@pytest.fixture(scope="session")
def pages(html) -> dict[str, Reader]:
    names = sorted(path.relative_to(html).as_posix() for path in html.rglob("*.html") if "_static" not in path.parts)
    return {name: Reader((html / name).read_text(encoding="utf-8")) for name in names}


@pytest.fixture(scope="module")
def address(html) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(html))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--disable-gpu", *(["--no-sandbox"] if sys.platform == "linux" and os.geteuid() == 0 else [])]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


def test_sphinx_had_nothing_to_complain_of(book):
    assert not book["problems"], "\n".join(book["problems"])


def test_every_notebook_paper_card_and_module_has_a_page(pages):
    folders = {"notebooks": "notebooks/**/*.ipynb", "datasets": "datasets/*.yaml", "papers": "papers/*/paper.yaml"}
    wanted = {path.relative_to(ROOT) for pattern in folders.values() for path in ROOT.glob(pattern)}
    wanted = {path for path in wanted if not any(part.startswith(".") for part in path.parts)}
    names = {path.with_suffix(".html").as_posix().replace("/paper.html", "/index.html") for path in wanted}
    names |= {f"api/fl_utils.{name}.html" for name in ("federation", "secure.spdz", "runner.cli", "data.cards")}
    assert names | {"index.html", "course.html", "scorecard.html", "glossary.html", "search.html"} <= set(pages)


def test_no_internal_link_is_dead(html, pages):
    dead = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            path = (html / name).parent.joinpath(unquote(parts.path)).resolve() if parts.path else html / name
            target = path.relative_to(html.resolve()).as_posix() if path.is_relative_to(html.resolve()) else ""
            if not target or not path.is_file():
                dead.append(f"{name}: {link}")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                dead.append(f"{name}: {link} (no such place in the page)")
    assert not dead, "\n".join(dead[:40])


def test_every_picture_is_there_and_says_what_it_shows(html, pages):
    wrong = []
    for name, page in pages.items():
        for picture in page.pictures:
            if not (html / name).parent.joinpath(unquote(picture.get("src") or "-")).is_file():
                wrong.append(f"{name}: no picture {picture.get('src')}")
            if not (picture.get("alt") or "").strip() or (picture["alt"] or "").endswith(".png"):
                wrong.append(f"{name}: {picture.get('src')} has no alt text")
    assert not wrong, "\n".join(wrong[:40])


def test_the_alt_texts_are_the_notebooks_own(pages):
    seen = 0
    for path in ROOT.glob("notebooks/**/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", []) if "data" in output]
        alts = [output["metadata"]["image/png"]["alt"] for output in outputs if output["metadata"].get("image/png")]
        page = pages[path.relative_to(ROOT).with_suffix(".html").as_posix()]
        shown = {" ".join((picture.get("alt") or "").split()) for picture in page.pictures}
        assert {" ".join(alt.split()) for alt in alts} <= shown, path.name
        seen += len(alts)
    assert seen


def test_nothing_is_loaded_from_elsewhere(pages):
    loaded = {f"{name}: {source}" for name, page in pages.items() for source in page.loaded if urlsplit(source).netloc}
    assert not loaded


def test_formulas_need_no_script(html, pages):
    tutorials = [path.read_text(encoding="utf-8") for path in (html / "notebooks" / "tutorials").glob("*.html")]
    glossary = (html / "glossary.html").read_text(encoding="utf-8")
    assert "<math" in glossary and any("<math" in text for text in tutorials)
    assert not [source for page in pages.values() for source in page.loaded if "jax" in source or "katex" in source]


def lost(request) -> bool:
    """Whether ``request`` failed, and was not just given up because the next page was opened."""
    return request.failure != "net::ERR_ABORTED"


@in_browser
def test_every_page_works_on_a_phone_in_light_and_dark(browser, address, pages):
    context = browser.new_context(viewport=PHONE, color_scheme="light")
    page, wrong = context.new_page(), []
    met: list[str] = []
    page.on("pageerror", lambda error: met.append(f"script error: {error}"))
    page.on("console", lambda message: met.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("requestfailed", lambda request: met.append(f"request failed: {request.url}") if lost(request) else None)
    page.on("response", lambda answer: met.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
    for name in pages:
        met.clear()
        page.goto(f"{address}/{name}", wait_until="load")
        wrong += [f"{name}: missing picture {source}" for source in page.evaluate(PICTURES)]
        wide = page.evaluate(WIDE)
        if wide["page"] > 0 or wide["wide"]:
            wrong.append(f"{name}: {wide['page']} pixels wider than a phone: {wide['wide']}")
        light = page.evaluate(CONTRAST)
        page.emulate_media(color_scheme="dark")
        dark = page.evaluate(CONTRAST)
        page.emulate_media(color_scheme="light")
        if light["background"] == dark["background"]:
            wrong.append(f"{name}: no dark background")
        wrong += [
            f"{name}: contrast {look['lowest']:.1f} in {scheme}"
            for scheme, look in (("light", light), ("dark", dark))
            if look["lowest"] < READABLE
        ]
        wrong += [f"{name}: {what}" for what in met]
    context.close()
    assert not wrong, f"{len(wrong)} things:\n" + "\n".join(wrong[:40])


@in_browser
@pytest.mark.parametrize("place", ["http", "file"])
def test_the_search_finds_spdz(browser, address, html, place):
    page = browser.new_page()
    met: list[str] = []
    page.on("pageerror", lambda error: met.append(str(error)))
    page.goto(f"{address if place == 'http' else html.as_uri()}/index.html")
    page.fill("input[name=q]", "SPDZ")
    page.press("input[name=q]", "Enter")
    page.wait_for_selector("#search-results li a", timeout=60_000)
    page.wait_for_function("document.querySelector('#search-results .search-summary')?.textContent.match(/\\d+/)")
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.getAttribute('href'))")
    assert any(link.startswith("notebooks/tutorials/") and "spdz" in link for link in found), found
    assert not met
    page.close()


@in_browser
def test_the_front_page_leads_to_every_notebook_with_its_picture(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/index.html")
    links = set(page.eval_on_selector_all(".gallery a", "links => links.map(link => link.getAttribute('href'))"))
    notebooks = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in ROOT.glob("notebooks/*/*.ipynb")}
    assert notebooks <= links
    assert page.locator(".gallery img").count() > len(notebooks) / 2
    page.close()
