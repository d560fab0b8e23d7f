"""The report of a batch: its tables, its page, and what broken input does to them."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
from executed_notebooks import (
    FAILED,
    GOOD,
    NEVER,
    OTHER,
    PNG,
    TRACEBACK,
    Page,
    claim,
    code,
    fill,
    job,
    markdown,
    notebook,
    record,
    shown,
    tutorial,
    value,
)

from fl_utils.runner import report
from fl_utils.runner.page import format_number

HEADER = (
    "notebook,experiment,metric,value,unit,published,gap,scale,seed,seconds,peak_mb,bytes_up,bytes_down,commit,versions,"
    "spread,seeds,where"
)


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    failure = {
        "output_type": "error",
        "ename": "ValueError",
        "evalue": "a < b & c",
        "traceback": ["\x1b[31mred\x1b[0m"],
    }
    figure = code("plot()", [shown({"image/png": PNG, "text/plain": "<Figure>"})])
    prose = markdown("## Results\n\nAccuracy **rises** with\nevery `round`.")
    jobs = [{"notebook": name} for name in (GOOD, FAILED, NEVER)]
    about = {"started": "2025-01-02T03:04:05Z", "commit": "feed123", "scale": "embedded", "jobs": jobs}
    return fill(
        tmp_path / "batch",
        {
            "batch.json": about,
            GOOD: notebook(record(), cells=(prose, figure)),
            GOOD.replace(".ipynb", ".json"): job(GOOD),
            FAILED: notebook(title="Rounds", cells=(code("train()", [failure]),), paper="mobile", experiments=["M1"]),
            FAILED.replace(".ipynb", ".json"): job(
                FAILED, "failed", error="ValueError: a < b & c", traceback=TRACEBACK, finished="2025-01-02T03:05:00Z"
            ),
            "checkpoints/oarf/02_table3b_sentiment/job.json": "{",
        },
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_importing_the_report_is_cheap():
    heavy = "[m for m in ('torch', 'pandas', 'papermill', 'numpy', 'jinja2', 'nbformat') if m in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, fl_utils.runner.report; print({heavy})"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_results_have_one_row_per_value_with_its_run(batch, papers):
    values = [value(), value("seconds", 1e-5, unit="s", published=None, gap=None, where="", spread=None, seeds=1)]
    fill(batch, {GOOD: notebook(record(values=values, scale="paper", overrides="rounds=1 lr=0.1"))})
    report.write(batch, papers)
    assert (batch / "results.csv").read_text().splitlines()[0] == HEADER
    first, second = rows(batch / "results.csv")
    assert first == {
        **{"notebook": GOOD, "experiment": "O2", "metric": "accuracy/fedavg", "value": "78.125", "unit": "%"},
        **{"published": "86.0", "gap": "-7.875", "scale": "paper (rounds=1 lr=0.1)", "seed": "0", "seconds": "41.2"},
        **{"peak_mb": "512.0", "bytes_up": "123", "bytes_down": "456", "commit": "abc1234", "spread": "0.4"},
        **{"versions": "python 3.11.7; torch 2.8.0", "seeds": "3", "where": "Table 3b"},
    }
    assert (second["value"], second["published"], second["gap"], second["spread"]) == ("1e-05", "", "", "")


def test_time_and_memory_come_from_the_job_where_the_record_has_none(batch, papers):
    fill(batch, {GOOD: notebook(record(seconds=None, peak_mb=None))})
    report.write(batch, papers)
    (row,) = rows(batch / "results.csv")
    assert (row["seconds"], row["peak_mb"]) == ("50.0", "600.0")


def test_claims_have_their_verdict_and_evidence(batch, papers):
    claims = [claim(), claim("O2.2", False, evidence='1, "2"\n3')]
    fill(batch, {GOOD: notebook(record(claims=claims))})
    summary = report.write(batch, papers)
    text = (batch / "claims.csv").read_text()
    assert text.splitlines()[0] == "claim,statement,holds,evidence,notebook,scale,experiment"
    assert [(row["claim"], row["holds"], row["evidence"], row["experiment"]) for row in rows(batch / "claims.csv")] == [
        ("O2.1", "true", "78.1 > 70.2", "O2"),
        ("O2.2", "false", '1, "2" 3', "O2"),
    ]
    assert (summary.claims, summary.holding) == (2, 1)


def test_summary_counts_and_names_what_did_not_run(batch, papers):
    summary = report.write(batch, papers)
    assert (summary.notebooks, summary.ran, summary.failed, summary.claims, summary.holding) == (3, 1, 2, 1, 1)
    assert f"failed: {FAILED}: ValueError: a < b & c" in summary.text
    assert f"not run: {NEVER}: planned but not run" in summary.text
    assert summary.problems == ()


def test_page_stands_alone_and_is_whole(batch, papers):
    report.write(batch, papers)
    page = Page(batch / "index.html")
    assert not page.all("script") and not page.all("link")
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.all("img"))
    assert not re.search(r"url\(|@import|src=\"http", (batch / "index.html").read_text())
    for link in page.all("a"):
        assert link["href"].startswith("#") or (batch / link["href"]).is_file(), link
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")} <= ids
    words = " ".join(page.words.split())
    for expected in ("2025-01-02T03:04:05Z", "feed123", "2 cores x86_64", "3: 1 ran, 1 failed, 1 not run", "✓ holds"):
        assert expected in words
    assert "The OARF | suite: 1 of 1 hold" in words and "78.12 ± 0.4" in words and "−7.875" in words
    assert len(page.all("table")) == sum(tag.get("class") == "scroll" for tag in page.all("div"))


def test_page_folds_the_traceback_of_a_failed_notebook(batch, papers):
    report.write(batch, papers)
    page = Page(batch / "index.html")
    assert len(page.all("details")) == 2
    assert TRACEBACK in page.words and FAILED in page.words


def test_a_claim_that_does_not_hold_is_told_in_words(batch, papers):
    fill(batch, {GOOD: notebook(record(claims=[claim(holds=False)]))})
    report.write(batch, papers)
    assert "✗ does not hold" in Page(batch / "index.html").words


@pytest.mark.parametrize(
    ("output", "caption"),
    [
        (shown({"image/png": PNG}, **{"image/png": {"alt": "Accuracy by round"}}), "Accuracy by round"),
        (shown({"image/png": [PNG[:9] + "\n", PNG[9:]]}, caption="Figure 2"), "Figure 2"),
        (shown({"image/png": PNG}), "Accuracy rises with every round."),
    ],
)
def test_figures_have_a_caption(batch, papers, output, caption):
    prose = markdown("## Results\n\nAccuracy **rises** with\nevery `round`.")
    fill(batch, {GOOD: notebook(record(), cells=(prose, code("plot()", [output])))})
    report.write(batch, papers)
    page = Page(batch / "index.html")
    (image,) = page.all("img")
    assert image["alt"] == caption and caption in page.words
    assert image["src"] == f"data:image/png;base64,{PNG}"


def test_all_that_notebooks_say_is_escaped(batch, papers):
    evil = '"><script>alert(1)</script>'
    broken = notebook(
        record(
            **{
                "paper": evil,
                "experiments": [evil],
                "scale": evil,
                "commit": evil,
                "hardware": evil,
                "overrides": evil,
            },
            versions={evil: evil},
            values=[value(evil, evil, experiment=evil, unit=evil, published=evil, where=evil)],
            claims=[claim(evil, statement=evil, evidence=evil)],
            mood=evil,
        ),
        title=evil,
        cells=(code("plot()", [shown({"image/png": PNG}, alt=evil), shown({"image/png": evil})]),),
    )
    about = {"started": evil, "commit": evil, "scale": evil, "jobs": [{"notebook": evil}]}
    fill(batch, {"batch.json": about, GOOD: broken, FAILED.replace("ipynb", "json"): job(FAILED, evil, traceback=evil)})
    fill(batch, {'oarf/a"b<c.ipynb': notebook(record(), title=evil)})
    report.write(batch, papers)
    page = Page(batch / "index.html")
    assert not page.all("script")
    assert "<script" not in (batch / "index.html").read_text()
    assert page.words.count("alert(1)") > 15
    assert {name for _, attributes in page.tags for name in attributes if name.startswith("on")} == set()
    assert "oarf/a%22b%3Cc.ipynb" in {link["href"] for link in page.all("a")}


BROKEN = {
    "truncated notebook": ({GOOD: '{"cells": [{"cell_type"'}, f"{GOOD}: not whole JSON", "unreadable"),
    "empty notebook": ({GOOD: ""}, f"{GOOD}: not whole JSON", "unreadable"),
    "notebook without cells": ({GOOD: "[1]"}, f"{GOOD}: not a notebook (no list of cells)", "unreadable"),
    "odd cells": ({GOOD: {"cells": [1, {"outputs": 3, "metadata": [], "source": 4}]}}, None, None),
    "truncated job": ({GOOD.replace("ipynb", "json"): '{"status": "o'}, "sentiment.json: not whole JSON", None),
    "two records": ({GOOD: notebook(record(), record(seed=7))}, f"{GOOD}: 2 records, want exactly one", None),
    "other version": (
        {GOOD: notebook(record(version=2))},
        "record of version 2, this report reads version 1",
        "no record",
    ),
    "no object": ({GOOD: notebook([1])}, "record is a list, want an object", "no record"),
    "unknown keys": ({GOOD: notebook(record(mood="good"))}, f"{GOOD}: record has unknown keys mood", None),
    "missing keys": ({GOOD: notebook({"version": 1, "values": [value()]})}, "record lacks bytes_down, bytes_up", None),
    "NaN": (
        {GOOD: notebook(record(values=[value(number=float("nan"))]))},
        "'accuracy/fedavg' is NaN, want a finite",
        None,
    ),
    "no value": (
        {GOOD: notebook(record(values=[value(number=None)]))},
        "'accuracy/fedavg' is null, want a finite",
        None,
    ),
    "no published": (
        {GOOD: notebook(record(values=[{k: v for k, v in value().items() if k != "published"}]))},
        "values entry 'accuracy/fedavg' lacks published",
        None,
    ),
    "values no list": ({GOOD: notebook(record(values=3))}, "record: values is a int, want a list", None),
    "value no object": ({GOOD: notebook(record(values=[3, value()]))}, "values entry 1 is a int", None),
    "undecided": (
        {GOOD: notebook(record(claims=[claim(holds="yes")]))},
        "'O2.1' holds=\"yes\", want true, false or null",
        None,
    ),
    "no PNG": (
        {GOOD: notebook(record(), cells=(code("p", [shown({"image/png": "R0lG"})]),))},
        "figure 1 is no PNG",
        None,
    ),
    "lone surrogate": ({GOOD: notebook(record(commit="\ud800"))}, None, None),
    "no record": ({GOOD: notebook()}, "recorded nothing: the last cell displays no record", "no record"),
    "empty record": (
        {GOOD: notebook(record(values=[], claims=[]))},
        "recorded nothing: its record is empty",
        "no record",
    ),
    "never executed": ({GOOD: {"cells": [code("x", count=None)]}}, "no cell was executed", "not run"),
    "broken batch": ({"batch.json": '{"jobs": ['}, "batch.json: not whole JSON", None),
    "odd batch": ({"batch.json": {"jobs": 7, "started": ["x"]}}, None, None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_gives_one_line_and_loses_nothing_else(batch, papers, name):
    files, line, status = BROKEN[name]
    fill(batch, {OTHER: notebook(record(experiments=["O3"], values=[value("mine", 3, experiment="O3")]))})
    fill(batch, {OTHER.replace("ipynb", "json"): job(OTHER)} | files)
    summary = report.write(batch, papers)
    assert summary.text.count(line or "") == 1 or line is None, summary.text
    shown_line = (line or "").rpartition("ipynb: ")[2]  # the page sets the status between a notebook and its error
    assert shown_line in " ".join(Page(batch / "index.html").words.split())
    assert "mine" in {row["metric"] for row in rows(batch / "results.csv")}
    assert (f"\n{status}: {GOOD}: " in f"\n{summary.text}") == (status is not None), summary.text


def test_values_of_a_damaged_record_are_kept(batch, papers):
    values = [value(number=float("nan")), value("oom", "OOM"), value("good", 2, gap=float("inf"))]
    fill(batch, {GOOD: notebook(record(values=values, mood="good"))})
    report.write(batch, papers)
    assert [row["value"] for row in rows(batch / "results.csv")] == ["nan", "OOM", "2"]


def test_a_notebook_whose_job_never_ended_is_unfinished(batch, papers):
    (batch / GOOD).with_suffix(".json").unlink()
    summary = report.write(batch, papers)
    assert f"unfinished: {GOOD}: " in summary.text
    assert len(rows(batch / "results.csv")) == 1


def test_an_error_output_counts_whatever_the_job_says(batch, papers):
    fill(batch, {FAILED.replace("ipynb", "json"): job(FAILED, "ok")})
    assert f"failed: {FAILED}: ValueError: a < b & c" in report.write(batch, papers).text
    assert "red" in Page(batch / "index.html").words


def test_broken_paper_is_a_problem_and_no_end(batch, tmp_path):
    papers = fill(tmp_path / "papers2", {"oarf/paper.yaml": "title: [\n"})
    assert "oarf/paper.yaml: not YAML" in report.write(batch, papers).text
    assert len(rows(batch / "results.csv")) == 1


def test_saved_notebooks_can_be_reported_without_a_batch(tmp_path, papers):
    saved = fill(tmp_path / "notebooks", {GOOD: notebook(record()), "tutorials/01_a.ipynb": tutorial(), "x.json": [1]})
    summary = report.write(saved, papers)
    assert (summary.notebooks, summary.ran, summary.problems) == (2, 2, ())


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_notebooks_is_refused(tmp_path, make):
    if make:
        (tmp_path / "none").mkdir()
    with pytest.raises(report.ReportError, match=r"none: no (such folder|notebooks in it); want a batch"):
        report.write(tmp_path / "none")


@pytest.mark.parametrize(
    ("number", "signed", "shown"),
    [
        (25557032, False, "25,557,032"),
        (0.91897, False, "0.919"),
        (-7.875, True, "−7.875"),
        (1.5, True, "+1.5"),
        (0, True, "0"),
        (12345.67, False, "12,345.7"),
        (1e-5, False, "1e-05"),
        (float("nan"), True, "nan"),
        ("OOM", False, "OOM"),
        (None, False, ""),
    ],
)
def test_numbers_are_readable(number, signed, shown):
    assert format_number(number, signed) == shown
