"""What notebooks would take: figures of a real probe, what is refused, and what is said where data is not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_repository import notebook, repository

from fl_utils.runner import catalog, forecast, plan, stand_ins
from fl_utils.runner.cli import main
from fl_utils.runner.forecast import HERE, TO_BRING, TO_FETCH, Data, Forecast, Measured

PROBED = (
    "from fl_utils import probe",
    "kept = probe.account()\nkept.left_out(30.0 * rounds)\nprobe.sent(1000, 500)",
    "from fl_utils.export.kept import place\nmodel = place('oarf/01_good')\n"
    "model.parent.mkdir(parents=True, exist_ok=True)\nmodel.write_text('x')",
)


def call(root: Path, *arguments: object):
    return CliRunner().invoke(main, ["--root", str(root), "plan", *map(str, arguments)])


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return repository(tmp_path, {"oarf/01_good.ipynb": notebook(*PROBED)})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """No kernel is started; what each probe is given is kept. It takes 10 s, and leaves 100 s out."""
    given = []

    def measure(entry, values, folder, limit, stopped, cut_short):
        given.append({"values": dict(values), "limit": limit, "cut_short": cut_short})
        left_out = {"seconds": 100.0, "bytes_up": 2_000_000, "bytes_down": 1_000_000}
        return Measured("ok", "", 10.0, 512.3, left_out)

    monkeypatch.setattr(forecast, "measure", measure)
    return given


def planned(parameters: str, **values) -> plan.Planned:
    """One notebook with these parameters, to be run with ``values``."""
    source = notebook(parameters=parameters, paper_scale={"minutes": 500, "memory_mb": 4000})
    cells = json.loads(source)["cells"]
    entry = catalog.Entry(
        "oarf/x.ipynb",
        paper="oarf",
        experiments=("O2",),
        parameters=catalog.parse_parameters(cells[1]["source"]),
        paper_scale={"minutes": 500, "memory_mb": 4000},
        source=source,
    )
    return plan.Planned(entry, values, values, "paper")


def test_a_probe_adds_what_it_took_to_what_it_left_out_and_leaves_nothing_behind(root: Path):
    before = files(root)
    result = call(root, "O2", "-p", "rounds", 4, "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    assert 120 < found["cpu_seconds"] < 180 and found["cpu_seconds"] == pytest.approx(
        120 + found["probe_seconds"], abs=1
    )
    assert found["minutes"] == found["cpu_seconds"] / 60
    assert found["bytes_sent"] == 1500 and 20 < found["memory_mb"] < 1000
    assert not found["at_least"] and not found["rough"] and found["notes"] == [] and found["data"] == []
    assert "probing oarf/01_good.ipynb (1 of 1)" in result.stderr
    assert files(root) == before and not (root / "runs").exists()


def test_a_notebook_that_dies_leaves_what_it_had_counted(tmp_path: Path):
    dies = notebook(*PROBED[:2], "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    result = call(repository(tmp_path, {"oarf/01_dies.ipynb": dies}), "01_dies")
    assert result.exit_code == 0
    assert ">= 1.5" in result.stdout and ">= 1.5 kB" in result.stdout
    assert "the probe ended early (the kernel died in cell 4" in result.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Missing argument"),
        (["nothing"], "no notebook is meant by 'nothing'"),
        (["O2", "-p", "ronds", "5"], "did you mean rounds"),
        (["O2", "-p", "rounds", "many"], "not a whole number"),
        (["O2", "-f", "absent.yaml"], "absent.yaml: No such file"),
        (["O2", "--scale", "paper"], "has no paper scale"),
        (["O2", "--scale", "huge"], "'huge' is not one of"),
        (["O2", "--limit", "0"], "--limit"),
        (["O2", "--limit", "nan"], "--limit"),
    ],
)
def test_refused_before_anything_runs(root: Path, measured, arguments, message):
    result = call(root, *arguments)
    assert result.exit_code == 2 and message in result.stderr and not measured


def test_the_table(root: Path, measured):
    result = call(root, "O2", "--limit", 33)
    head, row = result.stdout.splitlines()
    assert head.split("  ")[0] == "notebook" and "minutes on one core" in head
    assert row.split() == ["oarf/01_good.ipynb", "embedded", "1.8", "512", "MB", "3", "MB", "-"]
    assert measured == [{"values": {}, "limit": 33, "cut_short": True}]


def test_the_limit_is_said(root: Path, monkeypatch):
    over = Measured("timeout", "time is up in cell 2", 33.0, 500, {"seconds": 3567.0, "bytes_up": 0, "bytes_down": 0})
    monkeypatch.setattr(forecast, "measure", lambda *_, **__: over)
    result = call(root, "O2", "--limit", 33)
    assert ">= 60" in result.stdout
    assert "the probe was not done after 33 s (--limit): at least what is said here" in result.stdout


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and stand-ins that are a file each."""
    monkeypatch.setenv("FL_NOTEBOOKS_CACHE", str(tmp_path / "cache"))
    makers = dict.fromkeys(["mnist", "imdb"], lambda folder, examples: (folder / "made").write_text(str(examples)))
    monkeypatch.setattr(stand_ins, "MAKERS", makers)
    return tmp_path / "data"


def test_where_data_stands(no_data: Path):
    job = planned('dataset: str = "digits"  # x\ndata_dir: str = ""  # y', dataset="mnist+imdb+hanzi")
    found = {one.name: one for one in forecast.wanted(job)}
    assert {name: one.state for name, one in found.items()} == {"mnist": TO_FETCH, "imdb": TO_BRING, "hanzi": TO_FETCH}
    assert found["mnist"].bytes == 11_594_722 and found["imdb"].bytes is None
    assert found["imdb"].place.startswith("https://ai.stanford.edu/") and "aclImdb" in found["imdb"].layout


def test_made_up_data_stands_in(no_data: Path):
    job = planned('dataset: str = "digits"  # x\ndata_dir: str = ""  # y', dataset="mnist+imdb")
    values, notes, ratio = forecast.prepare(job, forecast.wanted(job), no_data)
    assert values == {"dataset": "mnist+imdb", "data_dir": str(no_data)} and ratio == 1
    assert notes == ["probed with made-up data of the size of mnist, imdb"]
    assert (no_data / "mnist" / "made").read_text() == "{'train': 60000, 'test': 10000}"


def test_default_data_in_place_of_what_cannot_be_made_is_scaled_and_said(no_data: Path, measured):
    job = planned('dataset: str = "digits"  # x\nrounds: int = 1  # y', dataset="casia_webface", rounds=7)
    found = forecast.forecast(job)
    assert measured[0]["values"] == {"rounds": 7}
    assert found.rough and found.notes == ["rough: with digits in place of casia_webface, times 72.7"]
    assert found.cpu_seconds == pytest.approx(10 + 100 * 494414 / 6797, abs=0.1)
    assert forecast.table([found])[1][2] == "about 120"


@pytest.mark.parametrize("default, wanted", [("", "casia_webface"), ("digits", "amazon")])
def test_not_predicted_where_numbers_are_missing(no_data: Path, measured, default, wanted):
    job = planned(f"dataset: str = {default!r}  # x", dataset=wanted)
    found = forecast.forecast(job)
    assert not measured and found.cpu_seconds is None and found.bytes_sent is None
    assert found.notes == [f"not predicted without the data: {wanted} is not here"]
    assert forecast.table([found])[1][2:5] == ["not predicted", "-", "-"]
    lines = forecast.details([found])
    assert "oarf/x.ipynb: it says of itself: 500 min, 4000 MB" in lines
    assert lines[-1].startswith(f"{wanted} is to be brought; to be had from http")


def test_weights_and_a_device_that_are_not_here(no_data: Path, monkeypatch):
    parameters = 'weights: str = ""  # w\ndevice: str = "cpu"  # d'
    job = planned(parameters, weights="alexnet_imagenet", device="cuda")
    monkeypatch.setattr(forecast, "_has_cuda", lambda: False)
    values, notes, _ = forecast.prepare(job, forecast.wanted(job), no_data)
    assert values == {"weights": "", "device": "cpu"}
    assert notes == [
        "probed from random weights: alexnet_imagenet is not here",
        "predicted for the CPU: this machine has no CUDA device",
    ]
    monkeypatch.setattr(forecast, "_has_cuda", lambda: True)
    assert forecast.prepare(job, forecast.wanted(job), no_data)[0]["device"] == "cuda"


def test_data_that_is_here_is_used_as_it_is(no_data: Path):
    data = [Data("mnist", HERE, None, "place", "12 MB", "layout")]
    job = planned('dataset: str = "digits"  # x', dataset="mnist")
    assert forecast.prepare(job, data, no_data) == ({"dataset": "mnist"}, [], 1.0)


@pytest.mark.parametrize(
    "names, count",
    [(["digits"], 6797), (["hanzi"], 238_000), (["amazon"], None), (["alexnet_imagenet"], None), ([], 0)],
)
def test_examples(names, count):
    assert forecast.examples(names) == count


@pytest.mark.parametrize("minutes, text", [(0.123, "0.12"), (9.96, "10"), (61.2, "61"), (2891, "2,900")])
def test_figure(minutes, text):
    assert forecast.figure(minutes) == text


@pytest.mark.parametrize("number, text", [(0, "0 B"), (1500, "1.5 kB"), (11_594_722, "11.6 MB"), (31.5e9, "31.5 GB")])
def test_size(number, text):
    assert forecast.size(number) == text


def test_everything_is_in_the_json():
    found = Forecast("a.ipynb", "paper", 60.0, 100.0, 5, data=[Data("mnist", HERE, None, "p", "s", "l")])
    about = json.loads(json.dumps(forecast.as_json(found)))
    assert about["minutes"] == 1 and about["data"][0]["place"] == "p" and about["scale"] == "paper"
