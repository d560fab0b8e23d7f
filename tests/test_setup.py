"""The set-up's own promises: three files with the same pins, no registry named anywhere, cheap imports."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement

import lock

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
REQUIREMENTS = (ROOT / "requirements.txt").read_text()


def direct() -> list[Requirement]:
    project = tomllib.loads(PYPROJECT)["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


def test_every_direct_dependency_says_who_needs_it():
    assert [requirement.name for requirement in direct()] == [name for name, _ in lock.needs(PYPROJECT)]


def test_the_lock_pins_every_direct_dependency_within_its_range():
    pinned = lock.pins(REQUIREMENTS)
    for requirement in direct():
        for line in pinned[requirement.name.lower()]:
            pin = Requirement(line)
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version, prereleases=True), f"{line} against {requirement}"


def test_the_lock_is_all_pins_and_no_address():
    for line in REQUIREMENTS.splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+( ; .+)?", line), line
        if " ; " in line:
            Marker(line.split(" ; ")[1])


def test_environment_yml_is_what_make_lock_writes_and_conda_can_read():
    text = (ROOT / "environment.yml").read_text()
    assert text == lock.environment(PYPROJECT, REQUIREMENTS), "environment.yml is stale: run `make lock`"
    parsed = yaml.safe_load(text)
    assert parsed["dependencies"][0] == "python=3.11"
    (pip,) = [entry["pip"] for entry in parsed["dependencies"] if isinstance(entry, dict)]
    assert {Requirement(line).name for line in pip[2:]} == {requirement.name for requirement in direct()}


def test_the_environment_at_work_is_the_lock():
    wrong = []
    for name, lines in lock.pins(REQUIREMENTS).items():
        for pin in map(Requirement, lines):
            if pin.marker is None or pin.marker.evaluate():
                version = metadata.version(name)
                if not pin.specifier.contains(version, prereleases=True):
                    wrong.append(f"{name} {version} instead of {pin.specifier}")
    assert not wrong, f"{wrong}: run `make clean` and `make test` again"


def test_no_tracked_file_names_a_registry_or_a_path_of_one_machine():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "registry.npmjs" + ".org", "deb.debian" + ".org"]
    for name in filter(None, tracked.stdout.split("\0")):
        file = ROOT / name
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="ignore")
        assert not [host for host in hosts if host in text], f"{name} names a registry host"


@pytest.mark.parametrize("module", ["fl_utils", "fl_utils.runner.cli", "fl_utils.data.cards"])
def test_cheap_imports_stay_cheap_and_silent(module):
    heavy = ["torch", "pandas", "sklearn", "matplotlib", "papermill", "distributed", "crypten", "syft", "coremltools"]
    script = f"import {module}, sys, json; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []
    assert done.stderr == ""
