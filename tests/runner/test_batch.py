"""Jobs in kernels and batches in folders: what is kept, what is repeated, what a death leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from tiny_repository import COST, alive, cell, notebook, outputs, repository, until

from fl_utils.runner import batch as batches
from fl_utils.runner import catalog, jobs, plan, saving
from fl_utils.runner.batch import Batch
from fl_utils.runner.catalog import Refused
from fl_utils.runner.jobs import Job, JobResult
from fl_utils.runner.progress import Lines


def planned(root: Path, user: dict | None = None) -> list[plan.Planned]:
    return plan.plan(catalog.scan(root / "notebooks"), user or {}, "embedded", root / "papers", root)[0]


def one_job(folder: Path, *code: str, timeout: float | None = None, **about) -> Job:
    source = notebook(*code, **about)
    sha256 = hashlib.sha256(source.encode()).hexdigest()
    folder.mkdir(exist_ok=True)
    return Job("oarf/01_x.ipynb", source, sha256, {}, "", str(folder / "checkpoints/oarf/01_x"), timeout)


def run_all(root: Path, batch: Batch, todo: list[plan.Planned], **more) -> dict[str, JobResult]:
    stop, show = threading.Event(), Lines(todo)
    with batches.local(2, show, stop) as submit:
        return {result.notebook: result for result in batches.run(batch, todo, submit, show, stop, **more)}


LEAVES_A_CHECKPOINT = """
import os
from concurrent.futures import Future
from pathlib import Path
Path(os.environ["FL_NOTEBOOKS_CHECKPOINTS"], "model.safetensors").write_text("half")
"""


def test_a_batch_of_notebooks_that_end_in_every_way(tmp_path):
    shown = "import os, sys\nprint(rounds, os.environ['FL_NOTEBOOKS_OVERRIDES'], os.environ['OMP_NUM_THREADS'])"
    root = repository(
        tmp_path,
        {
            "oarf/01_good.ipynb": notebook(LEAVES_A_CHECKPOINT, shown + "\nprint(sys.executable)"),
            "oarf/02_error.ipynb": notebook(LEAVES_A_CHECKPOINT, "print('before')\n1 / 0", "print('after')"),
            "oarf/03_dies.ipynb": notebook("print('before', flush=True)", "import os\nos.kill(os.getpid(), 9)"),
            "oarf/04_leaves.ipynb": notebook("raise SystemExit(0)", "print('after')"),
            "tutorials/01_large.ipynb": notebook("x = b'0' * 250_000_000", "del x", parameters=None),
        },
    )
    with Batch.create(root / "runs", None) as batch:
        todo = planned(root, {"rounds": "5"})
        batch.describe(todo, [], {"rounds": "5"}, "embedded", root)
        batch.point_latest(root / "runs")
        results = run_all(root, batch, todo)
    kept = {name: json.loads((batch.folder / name).with_suffix(".json").read_text()) for name in results}
    texts = {name: (batch.folder / name).read_text() for name in results}
    printed = {name: outputs(batch.folder / name) for name in results}
    assert len(results) == 5 and {job["notebook"] for job in batch.read()["jobs"]} == set(results)
    assert (root / "runs/latest").is_symlink() and (root / "runs/latest").resolve() == batch.folder

    good = kept["oarf/01_good.ipynb"]
    assert (good["status"], good["parameters"], good["attempts"], good["error"]) == ("ok", {"rounds": 5}, 1, "")
    assert good["seconds"] > 0 and printed["oarf/01_good.ipynb"] == f"5 rounds=5 1\n{sys.executable}\n"
    assert not (batch.folder / "checkpoints/oarf/01_good").exists()

    failed = kept["oarf/02_error.ipynb"]
    assert (failed["status"], failed["error"]) == ("failed", "ZeroDivisionError: division by zero (cell 4)")
    assert "1 / 0" in failed["traceback"] and "\x1b" not in failed["traceback"]
    assert "ZeroDivisionError" in texts["oarf/02_error.ipynb"] and printed["oarf/02_error.ipynb"] == "before\n"
    assert (batch.folder / "checkpoints/oarf/02_error/model.safetensors").read_text() == "half"

    died = kept["oarf/03_dies.ipynb"]  # it had replied before, so there is no second attempt
    assert died["error"] == "the kernel died in cell 4 (SIGKILL, perhaps out of memory)"
    assert (died["status"], died["attempts"]) == ("failed", 1) and printed["oarf/03_dies.ipynb"] == "before\n"
    assert "the kernel died in cell 4" in texts["oarf/03_dies.ipynb"]

    left = kept["oarf/04_leaves.ipynb"]  # papermill itself calls this one complete
    assert left["status"] == "failed" and "SystemExit in cell 3" in left["error"]

    large, small = kept["tutorials/01_large.ipynb"]["peak_mb"], good["peak_mb"]
    assert 220 < large - small < 330 and 30 < small < 200

    assert {job.notebook for job in todo if batch.is_done(job)} == {"oarf/01_good.ipynb", "tutorials/01_large.ipynb"}


@pytest.mark.parametrize("harm", ["", "status", "source", "parameters", "truncated", "missing", "json"])
def test_a_harmed_result_is_not_done(tmp_path, harm):
    root = repository(tmp_path, {"oarf/01_good.ipynb": notebook("1")})
    (job,) = planned(root, {"rounds": "5"})
    with Batch.create(root, root / "out") as batch:
        status = "failed" if harm == "status" else "ok"
        sha256 = "0" * 64 if harm == "source" else job.entry.sha256
        set_to = {"rounds": 6 if harm == "parameters" else 5}
        batch.keep(
            JobResult(job.notebook, status, 1.0, 1.0, 1, "", "", set_to, sha256, jobs.now(), executed=job.entry.source)
        )
        executed = batch.folder / job.notebook
        if harm == "truncated":
            executed.write_bytes(executed.read_bytes()[:-100])
        elif harm == "missing":
            executed.unlink()
        elif harm == "json":
            executed.with_suffix(".json").write_text("{")
        assert batch.is_done(job) == (harm == "")


class TestJob:
    def test_a_kernel_that_dies_before_it_replies_is_started_once_more(self, tmp_path, monkeypatch):
        from fl_utils.runner import kernel

        tried, command = tmp_path / "tried", kernel.make_ipkernel_cmd
        code = f"import pathlib, sys; pathlib.Path({str(tried)!r}).open('a').write('x'); sys.exit('no port left')"

        def unlucky(**more):
            times = len(tried.read_text()) if tried.exists() else 0
            return [sys.executable, "-c", code] if times < deaths else command(**more)

        monkeypatch.setattr(kernel, "make_ipkernel_cmd", unlucky)
        deaths = 1
        result = jobs.run_job(one_job(tmp_path / "once", "print(rounds)"))
        assert (result.status, result.attempts, tried.read_text()) == ("ok", 2, "x")
        deaths = 9
        result = jobs.run_job(one_job(tmp_path / "always", "print(rounds)"))
        assert (result.status, result.attempts, tried.read_text()) == ("failed", 2, "xxx")
        assert "did not start" in result.error and "no port left" in result.error

    def test_time_is_up_for_the_kernel_and_all_it_started(self, tmp_path):
        pids = tmp_path / "pids"
        code = f"""
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(600)"""
        result = jobs.run_job(one_job(tmp_path / "out", "print('before')", code, timeout=4))
        assert (result.status, result.error) == ("timeout", "time is up in cell 3") and 4 <= result.seconds < 30
        assert "before" in result.executed and "time is up" in result.executed
        until(lambda: not alive(*map(int, pids.read_text().split())), "the kernel's group to end", 5)

    def test_output_without_end_ends_the_notebook_and_not_the_runners_memory(self, tmp_path, monkeypatch):
        from fl_utils.runner import kernel

        monkeypatch.setattr(kernel, "OUTPUT", 1_000_000)
        result = jobs.run_job(one_job(tmp_path / "out", "while True: print('y' * 10_000)", timeout=30))
        assert result.status == "failed" and "of output in cell 2" in result.error
        assert 900_000 < len(result.executed) < 1_100_000

    def test_stopping_kills_a_kernel_that_holds_the_interpreter_lock(self, tmp_path):
        pid, stop, result = tmp_path / "pid", threading.Event(), []
        code = f"import ctypes, os\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\nctypes.PyDLL(None).sleep(600)"
        job = one_job(tmp_path / "out", code)
        thread = threading.Thread(target=lambda: result.append(jobs.run_job(job, None, stop.is_set)))
        thread.start()
        until(lambda: pid.exists() and pid.read_text(), "the cell")
        stop.set()
        thread.join(20)
        assert result[0].status == "stopped" and not alive(int(pid.read_text()))

    def test_progress_tells_cells_and_memory(self, tmp_path, monkeypatch):
        from fl_utils.runner import kernel

        monkeypatch.setattr(kernel, "SOCKET_PATH", 0)  # and it works where no path is short enough for sockets in files
        events = []
        job = one_job(tmp_path / "out", "1", "import time\ntime.sleep(0.6)")
        assert jobs.run_job(job, events.append).status == "ok"
        assert {event["cells"] for event in events} == {3} and {1, 2, 3} <= {event["cell"] for event in events}
        assert max(event["memory_mb"] for event in events) > 30

    def test_checkpoints_stay_for_the_same_job_only(self, tmp_path):
        job = one_job(tmp_path / "out", "1")
        folder = jobs.prepare_checkpoints(job)
        assert folder == tmp_path / "out/checkpoints/oarf/01_x"
        (folder / "model.safetensors").write_text("half")
        assert (jobs.prepare_checkpoints(job) / "model.safetensors").exists()
        other = Job(**{**vars(job), "parameters": {"rounds": 9}})
        assert not (jobs.prepare_checkpoints(other) / "model.safetensors").exists()

    def test_checkpoints_of_a_worker_without_the_batchs_folder_lie_in_its_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FL_NOTEBOOKS_CACHE", str(tmp_path / "cache"))
        job = one_job(tmp_path / "out", "1")
        (tmp_path / "out").rmdir()
        assert jobs.prepare_checkpoints(job) == tmp_path / "cache/checkpoints/out/oarf/01_x"


class TestFolders:
    def test_two_at_once_get_two_folders(self, tmp_path):
        with Batch.create(tmp_path / "runs", None) as one, Batch.create(tmp_path / "runs", None) as two:
            assert one.folder != two.folder and one.folder.parent == two.folder.parent == tmp_path / "runs"

    def test_a_taken_folder_is_refused(self, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full/thesis.txt").write_text("x")
        with pytest.raises(Refused, match="something other"):
            Batch.create(tmp_path, tmp_path / "full")
        with pytest.raises(Refused, match="is a file"):
            Batch.create(tmp_path, tmp_path / "full/thesis.txt")
        with Batch.create(tmp_path, tmp_path / "new") as batch:
            batch.describe([], [], {}, "embedded", tmp_path)
        with pytest.raises(Refused, match="--resume"):
            Batch.create(tmp_path, tmp_path / "new")

    def test_one_runner_at_a_time(self, tmp_path):
        with Batch.create(tmp_path, tmp_path / "new") as batch:
            batch.describe([], [], {}, "embedded", tmp_path)
            with pytest.raises(Refused, match="in use by another runner"):
                Batch.existing(tmp_path, tmp_path / "new")
        with Batch.existing(tmp_path, tmp_path / "new"):
            pass

    def test_a_latest_that_cannot_be_a_link_costs_no_batch(self, tmp_path):
        (tmp_path / "latest").mkdir()
        with Batch.create(tmp_path, None) as batch:
            assert "does not point at this batch" in batch.point_latest(tmp_path) and not batch.is_latest(tmp_path)
            (tmp_path / "latest").rmdir()
            assert batch.point_latest(tmp_path) == "" and batch.is_latest(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"latest", batch.folder.name}

    def test_nothing_to_resume(self, tmp_path):
        for out in (None, tmp_path / "no"):
            with pytest.raises(Refused, match="nothing to resume"):
                Batch.existing(tmp_path / "runs", out)

    @pytest.mark.parametrize("text", ["{", "[]", '{"jobs": []}', '{"jobs": [1], "parameters": {}, "scale": "paper"}'])
    def test_a_broken_batch_json_is_refused(self, tmp_path, text):
        (tmp_path / "batch.json").write_text(text)
        with Batch.existing(tmp_path, tmp_path) as batch, pytest.raises(Refused, match=r"batch\.json cannot be read"):
            batch.read()

    def test_the_longest_starts_first(self, tmp_path):
        minutes = {"01_a": 0.1, "02_b": 3, "03_c": 1}
        texts = {f"oarf/{name}.ipynb": notebook(default=COST | {"minutes": each}) for name, each in minutes.items()}
        root, begun = repository(tmp_path, texts), []

        def submit(job):
            begun.append(job.notebook)
            future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

        with batches.Batch.create(root / "runs", None) as batch:
            batches.run(batch, planned(root), submit, Lines([]), threading.Event())
        assert begun == ["oarf/02_b.ipynb", "oarf/03_c.ipynb", "oarf/01_a.ipynb"]

    def test_as_many_workers_as_cores_and_memory_allow(self, tmp_path, monkeypatch):
        large = notebook(default={"minutes": 1, "memory_mb": 10**9})
        root = repository(tmp_path, {f"oarf/0{n}_x.ipynb": notebook() for n in range(4)})
        monkeypatch.setattr(batches, "available_cores", lambda: 3)
        monkeypatch.setattr(batches, "_cpu_quota", lambda: 8)
        assert batches.default_workers(planned(root)) == 3
        monkeypatch.setattr(batches, "_cpu_quota", lambda: 2)
        assert batches.default_workers(planned(root)) == 2
        (root / "notebooks/oarf/00_x.ipynb").write_text(large)
        assert batches.default_workers(planned(root)) == 1


class TestSaving:
    def executed(self) -> dict:
        stderr = {"output_type": "stream", "name": "stderr", "text": "a bar"}
        stdout = {"output_type": "stream", "name": "stdout", "text": "ü\n"}
        content = json.loads(notebook("print('ü')"))
        content["metadata"] |= {
            "papermill": {"duration": 1.0},
            "language_info": {"name": "python", "version": "3.11.7"},
        }
        content["cells"].insert(2, cell("rounds = 5", "injected-parameters"))
        content["cells"].insert(0, cell("An Exception", "papermill-error-cell-tag", kind="markdown"))
        for each in content["cells"]:
            each["metadata"] |= {"papermill": {"duration": 0.1}, "execution": {"iopub.status.busy": "now"}}
        content["cells"][0]["metadata"].setdefault("tags", [])
        content["cells"][-1] |= {"outputs": [stderr, stdout, dict(stderr)], "execution_count": 2}
        return content

    def test_a_slider_keeps_its_text_and_no_state(self):
        content = self.executed()
        content["metadata"]["widgets"] = {"state": {}}
        shown = {saving.WIDGET: {"model_id": "1f"}, "text/plain": "interactive(...)"}
        content["cells"][-1]["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": shown}]
        stripped = saving.strip(content)
        assert "widgets" not in stripped["metadata"]
        assert stripped["cells"][-1]["outputs"][0]["data"] == {"text/plain": "interactive(...)"}

    def test_the_hook_strips_in_place_and_says_so(self, tmp_path, capsys):
        path = tmp_path / "x.ipynb"
        path.write_text(json.dumps(self.executed()))
        assert saving.main([str(path)]) == 1 and "stripped" in capsys.readouterr().out
        assert saving.main([str(path)]) == 0
        assert "papermill" not in json.loads(path.read_text())["metadata"]

    def test_strip_keeps_outputs_counts_and_tags_alone(self):
        stripped = saving.strip(self.executed())
        assert [each["cell_type"] for each in stripped["cells"]] == ["markdown", "code", "code"]
        assert [each["metadata"] for each in stripped["cells"]] == [{}, {"tags": ["parameters"]}, {}]
        assert stripped["cells"][-1]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": "ü\n"}]
        assert stripped["cells"][-1]["execution_count"] == 2
        assert set(stripped["metadata"]) == {"fl_notebooks", "language_info"}
        assert stripped["metadata"]["language_info"] == {"name": "python"}

    def test_strip_twice_is_strip_once_and_leaves_its_argument(self):
        content = self.executed()
        before = json.dumps(content)
        once = saving.strip(content)
        assert saving.strip(once) == once and json.dumps(content) == before

    def test_save(self, tmp_path, monkeypatch):
        path, executed = tmp_path / "x.ipynb", json.dumps(self.executed())
        path.write_text("old")
        sha256 = hashlib.sha256(b"old").hexdigest()
        assert "changed" in saving.save(executed, path, "0" * 64) and path.read_text() == "old"
        monkeypatch.setattr(saving, "LARGEST", 300)
        assert "MB" in saving.save(executed, path, sha256) and path.read_text() == "old"
        monkeypatch.undo()
        with monkeypatch.context() as patch:
            patch.setattr(saving, "write_whole", lambda *_: Path("/dev/null/x").write_text(""))
            assert "Not a directory" in saving.save(executed, path, sha256) and path.read_text() == "old"
        assert saving.save(executed, path, sha256) == ""
        assert json.loads(path.read_text(encoding="utf-8")) == saving.strip(self.executed())
        assert "ü" in path.read_text(encoding="utf-8") and path.read_text(encoding="utf-8").endswith("}\n")


def test_a_lost_job_is_a_failure_that_says_so(tmp_path):
    result = jobs.lost(one_job(tmp_path / "out", "1"), RuntimeError("the worker\nis gone"), 3.0)
    assert result.status == "failed" and result.error.endswith("RuntimeError: the worker is gone")


def test_the_environment_is_the_jobs_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("FL_NOTEBOOKS_OVERRIDES", "of another run")
    environment = jobs.environment(one_job(tmp_path / "out", "1"), tmp_path)
    assert environment["OMP_NUM_THREADS"] == "1" and environment["FL_NOTEBOOKS_OVERRIDES"] == ""
    assert os.environ["OMP_NUM_THREADS"] == "8" and set(os.environ) <= set(environment)
    first, *others = environment["PATH"].split(os.pathsep)
    assert first == str(Path(sys.executable).parent) and set(os.environ["PATH"].split(os.pathsep)) <= {first, *others}
