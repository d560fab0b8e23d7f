"""README's generated sections: the gallery of notebooks, the data of the paper scale, the scorecard of claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from executed_notebooks import GOOD, claim, fill, notebook, record, tutorial, value

from fl_utils.runner import report
from fl_utils.runner.readme import escape


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    roman = record(values=[value(where="section 4.1"), value("b", where="Table III")], claims=[], paper="decentralized")
    return fill(
        tmp_path / "notebooks",
        {
            "index.ipynb": tutorial("Index"),
            "tutorials/01_first.ipynb": tutorial(),
            "tutorials/solutions/01_first.ipynb": tutorial("Answers"),
            GOOD: notebook(
                record(claims=[claim(evidence="a | b"), claim("O2.10", False), claim("O2.9")]), title="A | b [c]"
            ),
            "decentralized/03_table3_order.ipynb": notebook(roman, paper="decentralized", title="Order"),
            "faces/05_figure4-2_speed.ipynb": notebook(title="Speed", paper="faces", experiments=["F5"]),
        },
    )


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    return fill(tmp_path / "datasets", {"imdb.yaml": "title: IMDB | reviews\n"})


def test_gallery_has_a_row_per_notebook(saved, papers, cards):
    gallery = report.readme_sections(saved, papers, cards)["gallery"]
    lines = gallery.splitlines()
    link = f"[A \\| b \\[c\\]](notebooks/{GOOD})"
    assert f"| {link} | Table 3b | IMDB \\| reviews + amazon | 0.8 | 2 of 3 claims hold |" in lines
    assert any(
        line.startswith("| [Order](notebooks/decentralized/03_table3_order.ipynb) | Table III |") for line in lines
    )
    assert any(line.startswith("| [Speed]") and "| Figure 4.2 |" in line and "no record: " in line for line in lines)
    assert [line for line in lines if line.startswith("###")] == [
        *("### Tutorials", "### The OARF \\| suite", "### faces", "### decentralized")
    ]
    assert "Index" not in gallery and "Answers" not in gallery


def test_scorecard_states_claims_in_order_and_counts_the_rest(saved, papers, cards):
    scorecard = report.readme_sections(saved, papers, cards)["scorecard"]
    table = [line for line in scorecard.splitlines() if line.startswith("| O2")]
    assert table[0] == "| O2.1 | FedAvg wins. | holds | a \\| b | embedded |"
    assert [line.split(" | ")[0] for line in table] == ["| O2.1", "| O2.9", "| O2.10"]
    assert "2 of 3 decided claims hold." in scorecard
    assert "2 claims of 2 experiments not decided yet." in scorecard  # O2.2 and O3.1


def test_data_of_the_paper_scale_has_its_official_place_and_who_wants_it(saved, papers, cards, tmp_path):
    fill(
        cards,
        {"big.yaml": "title: Big | set\nofficial: {place: https://a.org/big, size: 3 GB}\n", "own.yaml": "title: X\n"},
    )
    fill(papers, {f"oarf/scales/{Path(GOOD).stem}.yaml": "dataset: big + own\nweights: ''\nrounds: 9\n"})
    rows = report.readme_sections(saved, papers, cards)["data"].splitlines()
    assert rows[2:] == ["| Big \\| set | https://a.org/big | 3 GB | O2 |"]
    assert report.readme_sections(saved, fill(tmp_path / "none", {"x.txt": ""}), cards)["data"] == ""


def test_sections_depend_on_the_notebooks_alone(saved, papers, cards, tmp_path):
    first = report.readme_sections(saved, papers, cards)
    assert set(first) == {"gallery", "data", "scorecard"}
    assert str(tmp_path) not in "".join(first.values())
    assert not re.search(r"\d{4}-\d\d-\d\d", "".join(first.values()))
    files = {path.relative_to(saved).as_posix(): path.read_text() for path in sorted(saved.rglob("*.ipynb"))[::-1]}
    again = fill(tmp_path / "elsewhere" / "notebooks", files)
    assert report.readme_sections(again, papers, cards) == first


def test_markdown_rows_keep_their_columns(saved, papers, cards):
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").enable("table").parse(report.readme_sections(saved, papers, cards)["gallery"])
    kinds = [token.type for token in tokens]
    assert kinds.count("td_open") == 5 * (kinds.count("tr_open") - kinds.count("thead_open"))
    plain = "back\\slash | pipe `code` *star* [x] <b>"
    (inline,) = (token for token in MarkdownIt("commonmark").parse(escape(plain)) if token.type == "inline")
    assert "".join(child.content for child in inline.children) == plain


README = (
    "# X\n\n<!-- gallery:start --><!-- gallery:end -->\n\nBetween.\n"
    + "<!-- data:start -->\n<!-- data:end -->\n<!-- scorecard:start -->\nold\n<!-- scorecard:end -->\n"
)


def test_readme_is_updated_once(saved, papers, cards, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    assert report.update_readme(readme, saved, papers, cards) is True
    content = readme.read_text()
    assert content.startswith("# X\n") and "\nBetween.\n" in content and "\nold\n" not in content
    assert report.sections_in(content) == report.readme_sections(saved, papers, cards)
    assert report.update_readme(readme, saved, papers, cards) is False
    (saved / "tutorials/01_first.ipynb").unlink()
    assert report.sections_in(content) != report.readme_sections(saved, papers, cards)
    assert report.update_readme(readme, saved, papers, cards) is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# X\n", "the marker <!-- gallery:start --> is missing"),
        (README.replace("<!-- scorecard:end -->", ""), "the marker <!-- scorecard:end --> is missing"),
        (README + "<!-- gallery:end -->", "the marker <!-- gallery:end --> stands more than once"),
        ("<!-- gallery:end --><!-- gallery:start -->", "stands before <!-- gallery:start -->"),
        (None, "no such file"),
    ],
)
def test_a_readme_without_its_markers_is_refused_and_kept(saved, papers, cards, tmp_path, content, message):
    readme = tmp_path / "README.md"
    if content is not None:
        readme.write_text(content)
    with pytest.raises(report.ReportError, match=re.escape(message)):
        report.update_readme(readme, saved, papers, cards)
    assert not readme.exists() or readme.read_text() == content


def test_broken_claims_are_named(saved, cards, tmp_path):
    papers = fill(tmp_path / "papers3", {"oarf/claims.yaml": "O2.1: wins\n"})
    with pytest.raises(report.ReportError, match=r"oarf/claims.yaml: want a list of claims"):
        report.readme_sections(saved, papers, cards)
