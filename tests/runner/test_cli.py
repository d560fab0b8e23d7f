"""The command: what it refuses, its exit codes, and what a signal in the middle of a batch leaves to resume."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_repository import alive, notebook, outputs, repository, start, until

from fl_utils import paths
from fl_utils.runner.batch import Batch
from fl_utils.runner.cli import main


def call(root: Path, *arguments: object):
    return CliRunner().invoke(main, ["--root", str(root), *map(str, arguments)])


def slow(name: str, trace: Path, seconds: float) -> str:
    """A notebook that says in ``trace`` that it began, and its process; it sleeps unless ``trace/go`` exists."""
    return notebook(
        f"import os, time\nprint('{name}', rounds, file=open({str(trace / name)!r}, 'a'), flush=True)",
        "checkpoint = os.environ['FL_NOTEBOOKS_CHECKPOINTS'] + '/model'\n"
        "print('resumed' if os.path.exists(checkpoint) else 'from nothing')\nopen(checkpoint, 'w').write('half')",
        f"open({str(trace / name)!r} + '.pid', 'w').write(str(os.getpid()))\n"
        f"time.sleep(0 if os.path.exists({str(trace / 'go')!r}) else {seconds})",
        default={"minutes": 1 if seconds else 2, "memory_mb": 100},
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return repository(
        tmp_path, {"oarf/01_good.ipynb": notebook("print(rounds)"), "index.ipynb": notebook(paper="", experiments=[])}
    )


@pytest.fixture
def interrupted(tmp_path: Path):
    """A repository with one quick notebook, which starts first, and two slow ones; and the folder of their traces."""
    trace = tmp_path / "trace"
    trace.mkdir()
    names = {"quick": 0, "slow1": 60, "slow2": 60}
    texts = {f"oarf/{name}.ipynb": slow(name, trace, seconds) for name, seconds in names.items()}
    return repository(tmp_path, texts), trace


def pids(trace: Path) -> list[int]:
    """The processes of the slow notebooks that run now."""
    found = [path.read_text() for path in trace.glob("slow*.pid")]
    return [int(text) for text in found if text]


def until_slow_ones_run(root: Path, trace: Path, number: int) -> None:
    until(lambda: len(pids(trace)) == number and list(root.glob("**/quick.json")), "the slow notebooks to run")


def whole(folder: Path) -> bool:
    """Every notebook and JSON in a batch can be read, and nothing unfinished lies about."""
    for path in (path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".ipynb")):
        json.loads(path.read_text(encoding="utf-8"))
    return not [path for path in folder.rglob(".*") if path.is_file() and path.name != ".lock"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing"], "no notebook is meant by 'nothing'"),
        (["O2", "-p", "ronds", "5"], "did you mean rounds"),
        (["O2", "-p", "rounds", "many"], "not a whole number"),
        (["O2", "-p", "rounds"], "requires 2 arguments"),
        (["O2", "-f", "absent.yaml"], "absent.yaml: No such file"),
        (["O2", "--scale", "paper"], "has no paper scale"),
        (["O2", "--scale", "huge"], "'huge' is not one of"),
        (["O2", "--jobs", "0"], "--jobs"),
        (["O2", "--timeout", "0"], "--timeout"),
        (["O2", "--timeout", "nan"], "--timeout"),
        (["O2", "--resume"], "nothing to resume"),
        (["O2", ""], "no notebook is meant by ''"),
        (["O2", "--out", "/dev/null/x"], "no batch can be written to /dev/null/x (Not a directory)"),
        (["O2", "--scheduler", "somewhere"], "want the address of a Dask scheduler"),
        (["O2", "--scheduler", "tcp://localhost:1", "--jobs", "2"], "--jobs is for this machine"),
    ],
)
def test_refused_before_anything_runs(root, arguments, message):
    result = call(root, "run", *arguments)
    assert result.exit_code == 2 and message in result.output, result.output
    assert not (root / "runs").exists()


def test_executed_notebooks_do_not_go_among_the_sources(root):
    result = call(root, "run", "O2", "--out", root / "notebooks/mine")
    assert result.exit_code == 2 and "in the notebooks folder" in result.output
    assert not (root / "notebooks/mine").exists()


def test_a_folder_that_cannot_be_written_stops_the_batch_with_one_line(root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Batch, "keep", full)
    result = call(root, "run", "O2", "--out", root / "out")
    assert result.exit_code == 1 and not isinstance(result.exception, OSError)
    assert result.stderr.splitlines()[-1] == (
        f"fl-notebooks: {root / 'out'} cannot be written (No space left on device); "
        f"finish with: fl-notebooks run --resume --out {root / 'out'}"
    )


def test_exit_codes_and_summary(root):
    (root / "notebooks/oarf/02_bad.ipynb").write_text(notebook("1 / 0", experiments=["O3"]))
    before = (root / "notebooks/oarf/01_good.ipynb").read_text()
    result = call(root, "run", "O2", "-p", "rounds", "7", "--out", root / "out", "--save")
    assert (root / "notebooks/oarf/01_good.ipynb").read_text() == before  # not a run at the defaults
    assert result.exit_code == 0 and "[1/1] ok oarf/01_good.ipynb" in result.stderr
    assert "cores at work" in result.stdout
    assert result.stdout.startswith("1 ran, 0 failed") and (root / "out/index.html").is_file()
    assert outputs(root / "out/oarf/01_good.ipynb") == "7\n" and not (root / "runs").exists()
    result = call(root, "run", "O3")
    assert result.exit_code == 1 and "FAILED oarf/02_bad.ipynb: ZeroDivisionError" in result.stdout
    assert (root / "runs/latest/oarf/02_bad.ipynb").is_file()
    report = call(root, "report", root / "out")
    assert report.exit_code == 0 and "1 notebooks" in report.stdout
    assert call(root, "report", root / "absent").exit_code == 2


def test_list(root):
    lines = call(root, "list").stdout.splitlines()
    assert len(lines) == 3 and lines[2].split()[:3] == ["oarf/01_good.ipynb", "oarf", "O2"]
    (about,) = json.loads(call(root, "list", "oarf", "--json").stdout)
    assert about["experiments"] == ["O2"] and about["default"] == {"minutes": 0.1, "memory_mb": 100}
    assert about["data_sets"] == {"default": [], "paper": []}
    assert about["parameters"][0] == {"name": "rounds", "type": "int", "default": 3, "comment": "R (section 4.2)"}


class TestSignals:
    def test_stops_whole_and_resumes_without_repeating(self, interrupted):
        root, trace = interrupted
        runner = start(root, "run", "-p", "rounds", 5, "--jobs", 2)
        until_slow_ones_run(root, trace, 2)
        kernels = pids(trace)
        runner.send_signal(signal.SIGINT)
        stdout, stderr = runner.communicate(timeout=30)
        assert runner.returncode == 130, stderr
        assert "1 of 3 notebooks are done; finish with: fl-notebooks run --resume\n" in stdout
        assert not alive(*kernels)
        folder = (root / "runs/latest").resolve()
        assert whole(folder) and not list(folder.glob("oarf/slow*"))
        (trace / "go").touch()
        result = call(root, "run", "--resume")
        assert result.exit_code == 0 and result.stdout.startswith("2 ran, 0 failed, 1 done before")
        assert (root / "runs/latest").resolve() == folder and len(list(folder.glob("oarf/*.ipynb"))) == 3
        assert (trace / "quick").read_text() == "quick 5\n"  # once
        assert (trace / "slow1").read_text() == "slow1 5\n" * 2
        printed = [outputs(folder / f"oarf/{name}.ipynb") for name in ("quick", "slow1", "slow2")]
        assert printed == ["from nothing\n", "resumed\n", "resumed\n"]  # checkpoints outlive the interruption

    def test_kill_9_leaves_no_kernel_and_resumes(self, interrupted):
        root, trace = interrupted
        runner = start(root, "run", "quick", "slow1", "--jobs", 2, "--out", root / "mine")
        until_slow_ones_run(root, trace, 1)
        kernels = pids(trace)
        second = call(root, "run", "--resume", "--out", root / "mine")
        assert second.exit_code == 2 and "in use by another runner" in second.output
        runner.kill()
        runner.communicate(timeout=30)
        until(lambda: not alive(*kernels), "the kernels to end", 10)
        (trace / "go").touch()
        result = call(root, "run", "--resume", "--out", root / "mine")
        assert result.exit_code == 0 and result.stdout.startswith("1 ran, 0 failed, 1 done before")
        assert whole(root / "mine") and (trace / "quick").read_text() == "quick 3\n"
        assert not list((root / "mine").glob("checkpoints/*"))
        changed = call(root, "run", "--resume", "--out", root / "mine", "-p", "lr", "0.5")  # not slow2 as well
        assert changed.exit_code == 0 and changed.stdout.startswith("2 ran, 0 failed;")
        part = call(root, "run", "quick", "--resume", "--out", root / "mine")
        assert part.exit_code == 0 and part.stdout.startswith("0 ran, 0 failed, 1 done before")
        again = call(root, "run", "--resume", "--out", root / "mine")
        assert again.exit_code == 0 and again.stdout.startswith("0 ran, 0 failed, 2 done before")


def test_two_batches_at_once(root):
    runners = [start(root, "run", "O2", "-p", "rounds", n) for n in (1, 2)]
    ended = [runner.communicate(timeout=60) for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], ended
    folders = [path for path in (root / "runs").iterdir() if not path.is_symlink()]
    printed = sorted(outputs(folder / "oarf/01_good.ipynb") for folder in folders)
    assert printed == ["1\n", "2\n"] and (root / "runs/latest").resolve() in folders


def test_on_a_dask_cluster(root):
    from distributed import LocalCluster

    (root / "notebooks/oarf/02_dies.ipynb").write_text(notebook("import os\nos.kill(os.getpid(), 9)"))
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
    ) as cluster:
        result = call(root, "run", "oarf", "-p", "rounds", 4, "--scheduler", cluster.scheduler_address)
        assert result.exit_code == 1 and result.stdout.startswith("1 ran, 1 failed"), result.output
        assert "started oarf/01_good.ipynb" in result.stderr
        assert outputs(root / "runs/latest/oarf/01_good.ipynb") == "4\n"
        assert "FAILED oarf/02_dies.ipynb: the kernel died in cell 3 (SIGKILL" in result.stdout
        pid = root / "pid"
        code = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
        (root / "notebooks/oarf/02_dies.ipynb").write_text(notebook(code))
        runner = start(root, "run", "02_dies", "--scheduler", cluster.scheduler_address)
        until(lambda: pid.exists() and pid.read_text(), "the notebook to run on the cluster")
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(30) == 130
        until(lambda: not alive(int(pid.read_text())), "the worker to kill the kernel", 10)


def test_save_writes_back_what_ran_at_the_defaults(root):
    path = root / "notebooks/oarf/01_good.ipynb"
    result = call(root, "run", "O2", "--save", "-p", "rounds", 3)
    assert result.exit_code == 0 and "saved oarf/01_good.ipynb" in result.stderr
    assert outputs(path) == "3\n" and "papermill" not in path.read_text() and "iopub" not in path.read_text()
    counts = [cell.get("execution_count") for cell in json.loads(path.read_text())["cells"]]
    assert counts == [None, 1, 2]


class TestData:
    @pytest.fixture
    def cards(self, root, monkeypatch):
        """One card that a (vanished) local server would carry, and one that the user has to give."""
        folder = root / "datasets"
        folder.mkdir()
        monkeypatch.setattr(paths, "DATASETS", folder)
        monkeypatch.setenv("FL_NOTEBOOKS_CACHE", str(root / "cache"))
        text = """
name: NAME
title: A title
task: none
licence: none
citation: none
parties: [a]
partition: one party
examples: {all: 1}
files: {x.bin: {sha256: "ZEROS", bytes: 1}}
sources: SOURCES
official: {place: the moon, size: 3 GB, layout: one file x.bin}
layouts: [{name: plain, patterns: [x.bin]}]
"""
        url = "{kind: https, url: 'http://127.0.0.1:1/x.bin', sha256: '', bytes: 1, members: {x.bin: ''}}"
        for name, sources in {"fetched": f"[{url}]", "given": "[]"}.items():
            (folder / f"{name}.yaml").write_text(
                text.replace("NAME", name).replace("SOURCES", sources).replace("ZEROS", "0" * 64)
            )
        return folder

    def wanting(self, root, dataset: str) -> None:
        declared = f'dataset: str = "{dataset}"\ndata_dir: str = ""'
        (root / "notebooks/oarf/01_good.ipynb").write_text(notebook("print(data_dir)", parameters=declared))

    def test_missing_data_is_refused_with_its_official_place(self, root, cards):
        self.wanting(root, "given")
        for more in ([], ["-p", "data_dir", "papers"]):
            result = call(root, "run", "O2", *more)
            assert result.exit_code == 2 and "the moon" in result.output and "3 GB" in result.output
            assert "wanted by oarf/01_good.ipynb" in result.output and "x.bin" in result.output
        assert not (root / "runs").exists()

    def test_given_data_is_used_from_a_relative_folder(self, root, cards, monkeypatch):
        self.wanting(root, "given")
        (root / "mine").mkdir()
        (root / "mine/x.bin").write_text("x")
        monkeypatch.chdir(root)
        result = call(root, "run", "O2", "-p", "data_dir", "mine")
        assert result.exit_code == 0, result.output
        assert outputs(root / "runs/latest/oarf/01_good.ipynb") == f"{root / 'mine'}\n"

    def test_data_that_cannot_be_fetched_and_an_unknown_card_are_refused(self, root, cards):
        self.wanting(root, "fetched")
        result = call(root, "run", "O2")
        assert result.exit_code == 2 and "could not fetch x.bin" in result.output
        self.wanting(root, "nothing")
        result = call(root, "run", "O2")
        assert result.exit_code == 2 and "unknown data set 'nothing': there are fetched, given" in result.output
        assert not (root / "runs").exists()

    def test_data_list_fetch_check(self, root, cards):
        lines = call(root, "data", "list").stdout.splitlines()
        assert "fetched" in lines[1] and "not fetched" in lines[1] and "the moon" in lines[2]
        assert {row["name"] for row in json.loads(call(root, "data", "list", "--json").stdout)} == {"fetched", "given"}
        assert call(root, "data", "fetch").exit_code == 2
        result = call(root, "data", "fetch", "fetchd")
        assert result.exit_code == 2 and "did you mean fetched" in result.output
        result = call(root, "data", "fetch", "fetched", "given")
        assert result.exit_code == 1 and "could not fetch" in result.output and "no registry package" in result.output
        assert call(root, "data", "check").exit_code == 0
        (root / "cache/datasets/fetched").mkdir(parents=True, exist_ok=True)
        (root / "cache/datasets/fetched/x.bin").write_text("y")
        result = call(root, "data", "check")
        assert result.exit_code == 1 and "x.bin" in result.stdout


def test_readme(root):
    (root / "README.md").write_text("no marks here\n")
    result = call(root, "report", "--readme")
    assert result.exit_code == 2 and "README.md" in result.output


def test_the_module_is_the_command_too(root):
    runner = start(root, "--help")
    stdout, _ = runner.communicate(timeout=30)
    assert runner.returncode == 0 and all(name in stdout for name in ("list", "run", "report", "data"))
