"""The rooms of the book: what they make of notebooks, links, docstrings, cards and the glossary, without Sphinx."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest

from fl_utils import paths
from fl_utils.book import api, course, data, gallery, glossary, notebooks, results, site
from fl_utils.book.docstrings import as_rest
from fl_utils.book.links import Links
from fl_utils.book.text import code, plain
from fl_utils.experiment import MIME
from fl_utils.runner import catalog
from fl_utils.runner.outcomes import Entry, Figure
from fl_utils.runner.readme import table
from fl_utils.runner.records import Claim, Record, Value


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in {
        "README.md": "# R",
        "notebooks/oarf/a.ipynb": "{}",
        "fl_utils/x.py": '"""X."""',
        "papers/oarf/scales/a.yaml": "rounds: 1",
        "ios/One.swift": "1",
        "ios/deep/Two.swift": "2",
        "ios/.hidden": "3",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture
def links(repository: Path) -> Links:
    pages = {"README.md": "README.md", "notebooks/oarf/a.ipynb": "notebooks/oarf/a.ipynb"}
    pages |= {"fl_utils/x.py": "api/fl_utils.x.rst", "papers/oarf": "papers/oarf/index.md"}
    return Links(repository, repository / "build", pages)


def png(size: tuple[int, int] = (64, 32)) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size, "navy").save(buffer, "PNG")
    return buffer.getvalue()


def entry(notebook: str, **more) -> Entry:
    return Entry(notebook, "ok", **{"title": "A title", "minutes": 0.5, **more})


def record(*claims: Claim, values: tuple[Value, ...] = ()) -> Record:
    return Record("oarf", ("O1",), "embedded", 0, values, claims, None, None, None, None, "", "", "")


@pytest.mark.parametrize(
    ("page", "text", "want"),
    [
        ("notebooks/oarf/a.ipynb", "[x](../../fl_utils/x.py)", "[x](../../api/fl_utils.x.rst)"),
        ("notebooks/oarf/a.ipynb", "[x](../../fl_utils/x.py#L3)", "[x](../../api/fl_utils.x.rst)"),
        ("notebooks/oarf/a.ipynb", "[p](../../papers/oarf/)", "[p](../../papers/oarf/index.md)"),
        ("notebooks/oarf/a.ipynb", "[r](../../README.md#two)", "[r](../../README.md#two)"),
        ("README.md", "[i](ios) and `[i](ios)`", "[i](files/ios.md) and `[i](files/ios.md)`"),
        ("README.md", "[n]: notebooks/oarf/a.ipynb\n\n[see][n]", "[n]: notebooks/oarf/a.ipynb\n\n[see][n]"),
        ("README.md", '<a href="fl_utils/x.py">x</a>', '<a href="api/fl_utils.x.rst">x</a>'),
        ("README.md", "[e](https://example.org/fl_utils/x.py) [t](#top)", None),
        ("README.md", "[gone](not/there.md) [out](../elsewhere.md)", None),
        ("README.md", "```\n[x](fl_utils/x.py)\n```", None),
    ],
)
def test_links_lead_to_what_the_book_has(links, page, text, want):
    assert links.rewritten(text, page) == (text if want is None else want)


def test_a_file_that_is_no_page_is_carried_along(links):
    text = "[scale](../../papers/oarf/scales/a.yaml)"
    assert links.rewritten(text, "notebooks/oarf/a.ipynb") == text
    assert links.copied == {"papers/oarf/scales/a.yaml"}


def test_a_folder_becomes_a_page_that_lists_it(links):
    links.rewritten("[i](ios)", "README.md")
    listing = links.listings["files/ios.md"]
    assert "../ios/deep/Two.swift" in listing and "hidden" not in listing
    assert {"ios/One.swift", "ios/deep/Two.swift"} <= links.copied


def test_a_file_too_large_to_carry_is_refused(links, repository, monkeypatch):
    monkeypatch.setattr("fl_utils.book.links.LARGEST", 3)
    with pytest.raises(ValueError, match=r"papers/oarf/scales/a\.yaml: 9 bytes; a page carries at most 3"):
        links.rewritten("[s](papers/oarf/scales/a.yaml)", "README.md")


def notebook(*outputs: dict) -> dict:
    before = {"cell_type": "markdown", "source": ["# T\n", "What comes next, in words."]}
    return {"cells": [before, {"cell_type": "code", "source": "1", "outputs": list(outputs)}]}


def picture(**metadata) -> dict:
    encoded = base64.b64encode(png()).decode()
    return {"output_type": "display_data", "data": {"image/png": encoded, "text/plain": "<Figure>"}, **metadata}


def test_a_picture_becomes_a_file_with_its_alt_text(links):
    shown = picture(metadata={"image/png": {"alt": "Bars [a] of *b* at 5 $"}})
    content, pictures = notebooks.prepared(notebook(shown), "notebooks/oarf/a.ipynb", links)
    (path,) = pictures
    assert pictures[path] == png()
    (output,) = content["cells"][1]["outputs"]
    assert output["data"] == {"text/markdown": rf"![Bars \[a\] of \*b\* at 5 \$](../../{path})"}


def test_a_picture_without_alt_text_says_what_stands_before_it(links):
    content, _ = notebooks.prepared(notebook(picture(metadata={})), "notebooks/oarf/a.ipynb", links)
    assert "![What comes next, in words.](" in content["cells"][1]["outputs"][0]["data"]["text/markdown"]


def test_each_picture_of_a_cell_keeps_its_own_caption(links):
    two = notebook(
        picture(metadata={"image/png": {"alt": "first"}}), picture(metadata={"image/png": {"alt": "second"}})
    )
    content, _ = notebooks.prepared(two, "notebooks/oarf/a.ipynb", links)
    texts = [output["data"]["text/markdown"] for output in content["cells"][1]["outputs"]]
    assert texts[0].startswith("![first]") and texts[1].startswith("![second]")


def test_records_and_scripts_are_left_out_and_controls_are_named(links):
    outputs = [
        {"output_type": "display_data", "data": {MIME: {}, "text/html": "<table></table>"}, "metadata": {}},
        {"output_type": "display_data", "data": {"application/javascript": "1"}, "metadata": {}},
        {"output_type": "display_data", "data": {notebooks.WIDGET: {}, "text/plain": "interactive"}, "metadata": {}},
        {"output_type": "stream", "name": "stdout", "text": "1"},
    ]
    content, _ = notebooks.prepared(notebook(*outputs), "notebooks/oarf/a.ipynb", links)
    table_, controls, stream = content["cells"][1]["outputs"]
    assert table_["data"] == {"text/html": "<table></table>"}
    assert controls["data"] == {"text/markdown": notebooks.SLIDER}
    assert stream["text"] == "1"


@pytest.mark.parametrize(
    ("docstring", "want"),
    [
        ("Plain words.", "Plain words."),
        ("A `name` and ``code``.", "A ``name`` and ``code``."),
        ("Takes *args and a|b, not_this_.", r"Takes \*args and a\|b, not_this\_."),
        ("See :func:`run`.", "See :py:func:`run <full.run>`."),
        ("See :func:`nobody`.", "See ``nobody``."),
        (
            "Head.\n\nRaises:\n    ReportError: no file,\n    or none.",
            "Head.\n\nRaises:\n\n   ReportError: no file,\n   or none.",
        ),
        ("Head:\n    1. one\n       goes on\n    2. two", "Head:\n\n   1. one\n      goes on\n\n   2. two"),
        ("Do:\n\n>>> a_ * b\n3\n\nDone.", "Do:\n\n.. code-block:: pycon\n\n   >>> a_ * b\n   3\n\n\nDone."),
    ],
)
def test_docstrings_become_restructured_text(docstring, want):
    assert as_rest(docstring, lambda _, name: {"run": "full.run"}.get(name, "")) == want


def test_every_docstring_of_the_package_is_read_without_complaint():
    docutils = pytest.importorskip("docutils.core")
    complaints = []
    for module in api.modules(paths.ROOT / "fl_utils"):
        told = io.StringIO()
        text = as_rest(module.docstring, lambda kind, name: "")
        docutils.publish_doctree(text, settings_overrides={"warning_stream": told, "report_level": 2})
        complaints += [f"{module.name}: {told.getvalue()}"] * bool(told.getvalue())
    assert not complaints


def test_the_api_is_read_from_the_source(tmp_path):
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text('"""A house."""')
    (package / "door.py").write_text('"""Doors."""\n\n\nclass Door:\n    """One."""\n')
    (package / "room.py").write_text(
        '"""Rooms, with a :class:`Door`."""\n\nfrom house.door import Door\n\nWIDTH = 3\nimport not_installed\n\n\n'
        "class Room:\n    doors: list[Door]\n\n    def open(self, *, wide: bool = True) -> Door:\n"
        '        """Open it."""\n\n    @property\n    def area(self) -> float:\n        """In square metres."""\n\n\n'
        "def _hidden():\n    pass\n"
    )
    pages = api.pages(api.modules(package))
    assert set(pages) == {"api/index.md", "api/house.rst", "api/house.door.rst", "api/house.room.rst"}
    room = pages["api/house.room.rst"]
    for line in (
        ".. py:data:: WIDTH\n   :value: 3",
        "   .. py:method:: open(*, wide: bool=True) -> house.door.Door\n",
        "   .. py:property:: area\n      :type: float\n",
        "   .. py:attribute:: doors\n      :type: list[house.door.Door]\n",
        ":py:class:`Door <house.door.Door>`",
    ):
        assert line in room
    assert "_hidden" not in room


def test_words_cannot_break_out_of_a_table():
    assert plain("a | b\n*c* $d$ [e](f)") == r"a \| b \*c\* \$d\$ \[e\](f)"
    assert code("x|y") == r"`x\|y`" and code("") == "" and code("a`b") == "`` a`b ``"
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_thumbnail_is_small_and_of_the_papers_own_figure():
    from PIL import Image

    figures = [
        Figure(base64.b64encode(png(size)).decode(), words)
        for size, words in [((900, 300), "The data."), ((300, 900), "Figure 2 of the paper."), ((5, 5), "Times.")]
    ]
    small = gallery.thumbnail(entry("oarf/03_figure2_x.ipynb", figures=tuple(figures)))
    with Image.open(io.BytesIO(small)) as image:
        assert image.size == (gallery.WIDTH, gallery.HEIGHT)
        narrow = image.convert("RGB")
        assert narrow.getpixel((gallery.WIDTH // 2, 150)) != (255, 255, 255)
        assert narrow.getpixel((gallery.WIDTH // 4, 150)) == (255, 255, 255)
    assert gallery.thumbnail(entry("oarf/03_figure2_x.ipynb")) == b""


def test_the_front_page_has_a_card_for_every_notebook():
    claims = (Claim("O1.1", "s", True, "e"), Claim("O1.2", "s", False, "e"))
    entries = [
        entry("tutorials/01_a.ipynb", title="Tutorial"),
        entry("tutorials/solutions/01_a.ipynb", title="Its answers"),
        entry("oarf/01_table3a_x.ipynb", title="Table 3a", paper="oarf", experiments=("O1",), record=record(*claims)),
    ]
    page = gallery.page(entries, {"oarf": "The suite"}, ["glossary"])
    assert "**1 of 2 decided claims hold**" in page and "1 of 2 claims hold" in page
    assert ":link: /notebooks/tutorials/01_a" in page and ":link: /notebooks/oarf/01_table3a_x" in page
    assert "Its answers" not in page
    pages = course.pages(entries)
    assert "[solution](notebooks/tutorials/solutions/01_a.ipynb)" in pages["course.md"]
    assert "Its answers" in pages["solutions.md"]


def test_a_papers_page_sets_published_beside_reproduced(tmp_path):
    folder = tmp_path / "oarf"
    folder.mkdir()
    (folder / "paper.yaml").write_text("key: oarf\ntitle: 'The suite: tests'\ncitation: Hu et al.\n")
    (folder / "claims.yaml").write_text(
        "- {id: O1.1, experiment: O1, statement: Holds so., source: section 1, beyond_paper: false}\n"
        "- {id: O1.2, experiment: O1, statement: Who knows., source: s. 2, beyond_paper: false, needs: a GPU}\n"
    )
    value = Value("O1", "accuracy/all", 0.5, "%", "0.75", -0.25, "Table 1", 0.1, 3)
    known = entry(
        "oarf/01_table1_x.ipynb",
        title="Table 1",
        paper="oarf",
        experiments=("O1",),
        record=record(Claim("O1.1", "Holds so.", True, "0.5 > 0.4"), values=(value,)),
    )
    pages = results.pages([known], tmp_path)
    page = pages["papers/oarf/index.md"]
    assert "| `accuracy/all` | Table 1 | 0.75 | 0.5 ± 0.1 | % | −0.25 | embedded | 3 |" in page
    assert r"| O1.1 | Holds so. | **holds** | 0.5 \> 0.4 |" in page
    assert "| O1.2 | Who knows. | s. 2 | a GPU |" in page
    assert "1 of 1 decided claim holds, of 2 in all" in pages["scorecard.md"]


def test_every_card_has_a_page_that_says_what_it_says():
    pages = data.pages()
    assert len(pages) == 1 + len(list(paths.DATASETS.glob("*.yaml")))
    movielens = pages["datasets/movielens_100k.md"]
    assert "<https://grouplens.org/datasets/movielens/100k/>" in movielens and "| Licence |" in movielens


def test_every_parameter_of_the_glossary_is_in_a_notebook():
    terms = glossary.terms(paths.PAPERS / "glossary.yaml")
    there = {name for entry in catalog.scan(paths.NOTEBOOKS) for name in entry.parameters}
    named = {name for term in terms for name in term.parameters}
    assert named <= there, f"in no notebook's parameters cell: {sorted(named - there)}"
    assert {paper for term in terms for paper in term.papers} <= {path.parent.name for path in paths.PAPERS.glob("*/*")}
    symbols = {term.symbol for term in terms}
    assert {"E", "B", "C", "u", r"\eta", "k", r"\epsilon", r"\delta", "L", r"\sigma", "q"} <= symbols


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "want a list of terms"),
        ("- {symbol: E}", "term 1: want the keys"),
        ("- {symbol: E, name: n, meaning: m, papers: [x], parameters: []}", "want papers as a mapping"),
    ],
)
def test_a_broken_glossary_is_refused(tmp_path, text, message):
    path = tmp_path / "glossary.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        glossary.terms(path)


@pytest.mark.parametrize("out", [".", "notebooks/book", ".."])
def test_the_book_is_not_written_over_the_repository(out):
    with pytest.raises(ValueError, match="want a folder of the book's own"):
        site.build(paths.ROOT, paths.ROOT / out)


def test_the_command_refuses_before_anything_is_written():
    from click.testing import CliRunner

    from fl_utils.runner.cli import main

    answer = CliRunner().invoke(main, ["book", "--out", str(paths.ROOT / "notebooks" / "book")])
    assert answer.exit_code == 2 and "want a folder of the book's own" in answer.output
    assert not (paths.ROOT / "notebooks" / "book").exists()


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "furo" else object())
    with pytest.raises(ValueError, match="the book needs furo: install the packages"):
        site.build(paths.ROOT, tmp_path)
    assert not list(tmp_path.iterdir())


def test_pages_of_what_is_gone_are_removed(tmp_path):
    for name in ("index", "search", "old/page", "_static/part", "kept/page"):
        path = tmp_path / f"{name}.html"
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    site.drop_stale(tmp_path, {"index", "kept/page"})
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert left == {"index.html", "search.html", "_static/part.html", "kept/page.html"}
